-- generation: agrees on the generation of a name, and moves it.
--
-- KEYS 1 generation
-- ARGV 1 generation the caller knows (0: none), 2 move (1 or 0), 3 expiry ms, 4 channel, 5 clear event (the generation is appended)
-- Returns {1, now, generation}
--
-- A generation is a moment of the server's clock in microseconds, which makes it unique: counting up would give one number twice after the
-- key was evicted. Whoever asks first puts an evicted or rolled-back key right, since the greater of stored and known stands.
--
-- Atomic: two processes that ask at once must agree. A repeat of a move moves once more, which deletes nothing that was not deleted.

local stored = tonumber(string.match(read('GET', KEYS[1]) or '', '^%d+$') or '') or 0
if stored >= 9007199254740992 then stored = 0 end -- 2^53: no clock says that, and Lua could not count it
local g = math.max(stored, tonumber(ARGV[1]))
if g == 0 then g = micros end
local move = ARGV[2] == '1'
if move then g = math.max(micros, g + 1) end

if g == stored then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('UNLINK', KEYS[1]) -- a write first, so that a full Redis lets the rest pass
  redis.call('SET', KEYS[1], int(g), 'PX', ARGV[3])
end
if move then redis.call('PUBLISH', ARGV[4], ARGV[5] .. int(g)) end
return { 1, now, g }
