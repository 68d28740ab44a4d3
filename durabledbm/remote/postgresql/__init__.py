"""A database on a server that speaks PostgreSQL's protocol, over psycopg 3. `database` is where to begin reading."""
