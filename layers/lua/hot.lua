-- hot: notes how often one process reads its hottest keys, and says what the fleet reads most.
--
-- KEYS 1 and 2 the windows, which take turns; of one slot
-- ARGV 1 length of a window in ms, 2 members that a window keeps, 3 least score to return, 4 members to return of each window,
--      then pairs of a member and by how much its score grows; none: nothing is written
-- Returns {1, now, {member, score, ...} of the window under way, the same of the one before}, the highest first
--
-- A window is a sorted set. One member is too long for a key's name: it has the number of the window, negated, as its score, which is below all
-- others. Of a set that is of an older window nothing is returned, and nothing is added to it.
--
-- Atomic: two processes that begin a window at once must not drop what the other one added. A repeat adds once more: the key looks hotter than
-- it is until the window after the next begins.

local length, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local window = math.floor(now / length)
local current, last = KEYS[window % 2 + 1], KEYS[(window + 1) % 2 + 1]

local NUMBER = string.rep('w', 201)

local function isOf(key, w)
  return tonumber(read('ZSCORE', key, NUMBER) or '') == -w
end

local function top(key, w)
  if not isOf(key, w) then return {} end
  return redis.call('ZREVRANGEBYSCORE', key, '+inf', ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
end

if #ARGV > 4 then
  if not isOf(current, window) then
    redis.call('UNLINK', current)
    redis.call('ZADD', current, int(-window), NUMBER)
    redis.call('PEXPIREAT', current, int((window + 2) * length))
  end
  for i = 5, #ARGV, 2 do redis.call('ZINCRBY', current, ARGV[i + 1], ARGV[i]) end
  redis.call('ZREMRANGEBYRANK', current, 1, -most - 1)
end
return { 1, now, top(current, window), top(last, window - 1) }
