-- warmlist: notes how often keys were read of late, in the list of those that are worth loading before anybody asks.
--
-- KEYS 1 list
-- ARGV 1 keys it may have at most, 2 life ms, 3 the greatest worth, 4... pairs: what a key's rate is worth, in ms (below 0: less than one read a
--      second), and the key's string form
-- Returns {1, now}
--
-- The list is a sorted set. A score is the moment of the note and the worth of the rate then, so that it need not be changed as time passes: what
-- was noted later comes before what was read as often earlier. Of two notes the greater score stands, whichever process it came from, so a
-- repeat moves a key by no more than the time between the two. A score that no clock and no rate give is not ours and goes, as do the notes
-- older than a life and whatever is no sorted set.
--
-- Atomic: the list stands never without an expiry, nor with more keys than it may have.

local most, life, greatest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', KEYS[1]) end

local PAGE = 1000 -- pairs of one command: unpack has its limit
for from = 4, #ARGV, 2 * PAGE do
  local notes = {}
  for i = from, math.min(from + 2 * PAGE, #ARGV) - 1, 2 do
    notes[#notes + 1] = int(now + tonumber(ARGV[i]))
    notes[#notes + 1] = ARGV[i + 1]
  end
  redis.call('ZADD', KEYS[1], 'GT', unpack(notes))
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. int(now + greatest), '+inf')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now - life))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -most - 1)
redis.call('PEXPIRE', KEYS[1], life)
return { 1, now }
