-- segment: changes one segment of a shared filter, or does not.
--
-- KEYS 1 segment
-- ARGV 1 expiry ms (0: as before), 2 only where there is no such key (1 or 0), 3 number of conditions, 4 number of writes, then the
--      conditions and the writes, each an offset and bytes, then the offsets of the bits to set
-- Returns {1, now} if done, by this or an earlier sending; {0, now} if a condition does not hold, and then nothing has changed
--
-- Atomic: a segment that is lost between the look and the change would be made anew by it, with zeros where rows were, and perhaps be called
-- complete. A repeat finds what it wrote, and changes nothing but the expiry.

local key, expiry = KEYS[1], tonumber(ARGV[1])
local conditions, writes = tonumber(ARGV[3]), tonumber(ARGV[4])
local firstWrite = 5 + 2 * conditions
local firstBit = firstWrite + 2 * writes

-- In a key of another type nothing stands.
local function stand(first, number)
  for i = first, first + 2 * number - 2, 2 do
    local from = tonumber(ARGV[i])
    if redis.pcall('GETRANGE', key, from, from + #ARGV[i + 1] - 1) ~= ARGV[i + 1] then return false end
  end
  return true
end

if writes == 0 or not stand(firstWrite, writes) then
  local may = stand(5, conditions)
  if ARGV[2] == '1' then may = redis.call('EXISTS', key) == 0 end
  if not may then return { 0, now } end
  for from = firstBit, #ARGV, 1000 do -- four words each: unpack takes less than 8,000
    local sets = {}
    for i = from, math.min(from + 999, #ARGV) do
      local n = 4 * (i - from)
      sets[n + 1], sets[n + 2], sets[n + 3], sets[n + 4] = 'SET', 'u1', ARGV[i], 1
    end
    redis.call('BITFIELD', key, unpack(sets))
  end
  for i = firstWrite, firstBit - 2, 2 do redis.call('SETRANGE', key, ARGV[i], ARGV[i + 1]) end
end
if expiry > 0 then redis.call('PEXPIRE', key, expiry) end
return { 1, now }
