-- filterplace: puts a filter's snapshot, or the word that it is doubted, into its place, unless a newer one stands there.
--
-- KEYS 1 place, 2 part: what was stored before, head and snapshot
-- ARGV 1 the part's head, 2 length of the part in bytes, 3 life ms
-- Returns 1 it stands there, 0 a newer one stands there and the part is gone, -1 the part is not whole: nothing was done
--
-- A head has magic and version in its bytes 1 to 5, a token in 17 to 32, the rank in 33 to 40, big-endian; the rank grows with the moment at
-- which the scan began. Ranks are compared byte by byte: a number of Lua has 53 bits. What is no head of this version is replaced.
--
-- Atomic: the snapshot that is replaced must be the one that was compared. A repeat finds its own token in the place and says so.

local head, length = ARGV[1], tonumber(ARGV[2])
local magic, token, rank = string.sub(head, 1, 5), string.sub(head, 17, 32), string.sub(head, 33, 40)

local stands = redis.pcall('GETRANGE', KEYS[1], 0, #head - 1)
if type(stands) ~= 'string' or #stands < #head or string.sub(stands, 1, 5) ~= magic then stands = nil end
if stands and string.sub(stands, 17, 32) == token then return 1 end

local function newer(a, b) -- whether a is of a higher rank than b
  for i = 1, 8 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return false
end

if redis.call('STRLEN', KEYS[2]) ~= length or redis.call('GETRANGE', KEYS[2], 0, #head - 1) ~= head then return -1 end
if stands and newer(string.sub(stands, 33, 40), rank) then
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
