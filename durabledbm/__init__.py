"""durabledbm: a dict that lasts."""
