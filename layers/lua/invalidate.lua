-- invalidate: deletes the value, revokes the lease, opens the delete window and tells every process.
--
-- KEYS 1 value, 2 guard, 3 note of copies (in a Cluster)
-- ARGV 1 mode (once, begin, end, announce, set), 2 token of the operation, 3 delete window ms, 4 pend ms, 5 oldest allowed row version
--      (16 hex digits, or empty), 6 channel, 7 event, 8 generation, 9 lease ms
-- Returns {1, now, cut, stamp, copies}; cut and stamp are those of the lease in mode set, else 0 and empty. The caller drops the copies
--
-- begin and end stand around a write: between them everything granted lives for a slice (one delete window) only. announce deletes only
-- what says "absent", and leaves a marker where no live value stands. set grants the lease to the operation itself.
--
-- Atomic: an event heard before the delete lets the hearer read the old value again and keep it; a lease granted between the delete and
-- its revocation would store one. A repeat deletes once more; in mode set it is answered with the lease it already has.

local mode, token, window = ARGV[1], ARGV[2], tonumber(ARGV[3])
local generation = tonumber(ARGV[8])
local KEPT = 10000 -- ms a marker stands: longer than a filter may lag behind the announcements

local g = readGuard(KEYS[2])
if mode == 'set' and g.token == token then return { 1, now, g.cut, g.stamp, noted(KEYS[3]) } end

-- Every branch begins with an UNLINK: after a first write a script may go on, so an invalidation works on a full Redis too. The guard is
-- saved below in any case.
local e = peek(KEYS[1])
if e and e.generation < generation then e = nil end
local marked = e and has(e.flags, MARKER)
local live = e and e.hard > now and not has(e.flags, ABSENT)
local function marker(...)
  redis.call('SET', KEYS[1], envelope('tc\1' .. string.char(MARKER) .. string.rep('\0', 4), generation, now, now,
    string.rep('\0', 12), token, ''), ...)
end
if mode == 'announce' then
  redis.call('UNLINK', KEYS[live and 2 or 1])
  if not live then marker('PXAT', int(now + KEPT)) end
elseif marked then
  -- An announcement outlives the invalidations that follow it: a process may still have to hear of the new key.
  redis.call('UNLINK', KEYS[2])
  marker('KEEPTTL')
else
  redis.call('UNLINK', KEYS[1])
end

endLease(g)
g.backEnd = 0
local setEnd = g.setEnd
g.winEnd = math.max(g.winEnd, now + window)
if mode ~= 'set' then g.setEnd = math.max(g.setEnd, now + window) end
if ARGV[5] > g.minVersion then g.minVersion = ARGV[5] end

if mode == 'begin' then
  pends(g, token, now + tonumber(ARGV[4]))
elseif mode == 'end' then
  pendsNoMore(g, token)
elseif mode == 'set' then
  g.token, g.stamp, g.leaseEnd, g.leaseGen = token, int(micros), now + tonumber(ARGV[9]), generation
  -- Inside another's window the value may be older than that invalidation. The last window of a pending write that ran out counts too:
  -- its commit may have come after this value's.
  if g.pendEnd > now then
    g.cut = now + window
  elseif g.pendEnd + window > now then
    g.cut = g.pendEnd + window
  elseif setEnd > now then
    g.cut = setEnd
  end
end

saveGuard(KEYS[2], g, window)
redis.call('PUBLISH', ARGV[6], ARGV[7])
return { 1, now, g.cut, g.stamp, noted(KEYS[3]) }
