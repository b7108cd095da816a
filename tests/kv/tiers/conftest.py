"""Servers for the tests of the Redis tier; started by the first test that asks for one."""

from redis_fixtures import open_tier, own_server, redis_cluster, redis_server

__all__ = ["open_tier", "own_server", "redis_cluster", "redis_server"]
