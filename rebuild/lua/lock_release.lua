-- release: ends whatever the owner has, its grant and its place in the queue, and wakes whoever may come in.
--
-- KEYS 1 the name's sorted set
-- ARGV 1-6 as in the head, 7 token (0: any), 8 burn ms (0: not)
-- Returns {1, now us, 0, hw, 0}    it had the grant with this token, or had given it back before
--         {0, now us, 0, hw, 0}    it held nothing, or another grant, which is ended all the same: an owner is one call
--
-- Atomic: that it is the owner's, its end and the wake-up are one moment. Else: 1 A's lease stands; 2 it ends, B is granted; 3 A deletes
-- B's.
-- A repeat is answered by last. With burn no copy of acquire, however late, is granted.

local token, burn = tonumber(ARGV[7]), tonumber(ARGV[8])
local standing, granted = score('h:' .. owner), score('t:' .. owner)

write('ZREM', key, 'h:' .. owner, 't:' .. owner, 'x:' .. owner, 'q:' .. owner) -- first, so that a full Redis takes it
if standing then record.woken = 0 end
sweep()
local code = 0
if standing and standing - HELD > now then
  record.last = owner
  if token == 0 or token == granted then code = 1 end
elseif record.last == owner then
  code = 1
else
  refuse(token)
end
if burn > 0 then add(int(BURNED + now + burn), 'b:' .. owner) end
return finish({ code, micros, 0, record.hw, 0 })
