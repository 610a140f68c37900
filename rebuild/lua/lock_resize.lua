-- resize: changes how many shared holders a name has at once.
--
-- KEYS 1 the name's sorted set
-- ARGV 1-6 as in the head (limit: the new one, as far as it is positive; the owner is none), 7 the new limit, 0: that of the claims again
-- Returns {1, now us, 0, hw, 0}
--
-- Atomic: the new limit and the wake-up of those whom it lets in are one moment. Else: 1 the limit grows; 2 nobody releases; 3 they sleep.
-- A repeat changes nothing.

record.limit, record.woken = tonumber(ARGV[7]), 0
save() -- first, and it begins with ZADD: a full Redis refuses it
sweep()
return finish({ 1, micros, 0, record.hw, 0 })
