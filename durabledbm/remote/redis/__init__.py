"""A database on a Redis server, over redis-py. `scripts` tells how it is kept; `database` is where to begin reading."""
