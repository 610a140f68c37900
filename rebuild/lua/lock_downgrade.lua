-- downgrade: an exclusive grant becomes a shared one of another owner, with a new token.
--
-- KEYS 1 the name's sorted set
-- ARGV 1-6 as in the head, 7 token, 8 lease ms, 9 floor, 10 the owner of the shared grant
-- Returns {1, now us, rest of the lease ms, new token, 0}    done, now or before
--         {0, now us, 0, hw, 0}                              there was no such grant any more
--         {-1, now us, 0, hw, 0}                             the new owner is burned
--
-- Atomic: the end of the one and the beginning of the other are one moment. Else: 1 A releases; 2 B, who waits to write, is granted; 3 A
-- is not: what it had read is not true any more.
-- A repeat finds the new owner's grant and answers with its token.

local token, lease, floor, heir = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]

expire() -- first, so that a full Redis takes it
sweep()
local standing = score('h:' .. heir)
if standing then return finish({ 1, micros, standing - HELD - now, score('t:' .. heir), 0 }) end
if score('b:' .. heir) then return finish({ -1, micros, 0, record.hw, 0 }) end
if not score('h:' .. owner) or score('t:' .. owner) ~= token then
  refuse(token)
  return finish({ 0, micros, 0, record.hw, 0 })
end

write('ZREM', key, 'h:' .. owner, 't:' .. owner)
grant(heir, lease, floor)
record.last, record.woken = owner, 0
return finish({ 1, micros, lease, record.hw, 0 })
