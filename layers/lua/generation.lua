-- generation: agrees on the generation of a name, and moves it.
--
-- KEYS 1 generation
-- ARGV 1 generation the caller knows (0: none), 2 move (1 or 0), 3 expiry ms, 4 channel, 5 clear event (the generation is appended),
--      6 lost event, 7 moment since which the caller knows this key to have been renewed (0: none)
-- Returns {1, now, generation, generation that stood here before (0: none), when it was renewed last (0: not known)}
--
-- A generation is a moment of the server's clock in microseconds, which makes it unique: counting up would give one number twice after the
-- key was evicted. Whoever asks first puts an evicted or rolled-back key right, since the greater of stored and known stands.
--
-- A caller that knows a greater one than stands here, or a later renewal than this key remembers, has found that Redis lost writes: a flush,
-- an eviction, an older copy of the data. It is told by the last two fields, the others by the event, for they will not find it any more. So
-- one that knows nothing yet renews nothing: it would hide the sign.
--
-- Atomic: two processes that ask at once must agree. A repeat of a move moves once more, which deletes nothing that was not deleted.

local stored = tonumber(string.match(read('GET', KEYS[1]) or '', '^%d+$') or '') or 0
if stored >= 9007199254740992 then stored = 0 end -- 2^53: no clock says that, and Lua could not count it
local expiry = tonumber(ARGV[3])
local left = stored > 0 and redis.call('PTTL', KEYS[1]) or -1
local renewed = left >= 0 and now + left - expiry or 0 -- by the clock that was the server's then
local g = math.max(stored, tonumber(ARGV[1]))
if g == 0 then g = micros end
local move = ARGV[2] == '1'
if move then g = math.max(micros, g + 1) end

if g ~= stored then
  redis.call('UNLINK', KEYS[1]) -- a write first, so that a full Redis lets the rest pass
  redis.call('SET', KEYS[1], int(g), 'PXAT', int(now + expiry))
elseif ARGV[1] ~= '0' or left < 0 then
  redis.call('PEXPIREAT', KEYS[1], int(now + expiry))
end
if stored < tonumber(ARGV[1]) or left >= 0 and renewed < tonumber(ARGV[7]) then redis.call('PUBLISH', ARGV[4], ARGV[6]) end
if move then redis.call('PUBLISH', ARGV[4], ARGV[5] .. int(g)) end
return { 1, now, g, stored, renewed }
