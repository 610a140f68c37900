-- GET and the time of the server that holds the key, where the two cannot share a pipeline: through a client that may send a
-- keyless TIME to another server.
-- KEYS: 1 value
-- ARGV: none
-- Returns {seconds, microseconds, value or nil}.
-- Atomic because the time must be of the same server; that it is of the same moment is more than is needed.
local now = redis.call('TIME')
return {now[1], now[2], redis.call('GET', KEYS[1])}
