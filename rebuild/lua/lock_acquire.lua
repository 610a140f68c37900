-- acquire: grants the name if it is free for this owner, or keeps the owner's place in the queue.
--
-- KEYS 1 the name's sorted set
-- ARGV 1-6 as in the head, 7 lease ms, 8 entry ms (0: no place is taken), 9 floor, from 10 on other owners of this process
-- Returns {1, now us, rest of the lease ms, token, processes}                          granted, now or before
--         {0, now us, rest of what is in the way ms, hw, processes, owners gone...}    somebody has it, or is ahead
--         {-1, now us, 0, hw, 0}                                                       burned: never
--
-- Atomic: that it is free, that nobody ahead is passed, and the grant are one moment. Else: 1 A and B both see it free; 2 both are granted.
-- Refused, being put into the queue and the look whether somebody is to be woken are one moment too. Else: 1 B is refused, A has it;
-- 2 A releases, nobody waits, nobody is woken; 3 B is put into the queue and sleeps.
-- A repeat finds its own grant and answers with its token. A copy that comes after the release grants once more, to nobody; a burned owner
-- is granted nothing.

local lease, entry, floor = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local shared = string.sub(owner, 1, 1) == 's'
local counted = shared and limit > 0

sweep()
if score('b:' .. owner) then return finish({ -1, micros, 0, record.hw, 0 }) end

local function processes()
  if not counted then return 0 end
  add(int(ALIVE + now + PRESENT), 'n:' .. processOf(owner))
  return redis.call('ZCOUNT', key, from(ALIVE), to(ALIVE))
end

local standing = score('h:' .. owner)
if standing then
  local last = math.max(standing - HELD, now + lease)
  record.span = math.max(record.span, lease)
  add(int(HELD + last), 'h:' .. owner)
  return finish({ 1, micros, last - now, score('t:' .. owner), processes() })
end

local held, exclusive = holders()
local place = score('q:' .. owner)
local arrival = place
if place and place >= EXCLUSIVE then arrival = place - EXCLUSIVE end
local sharedAhead, exclusiveAhead = 0, 0
if ordered then
  sharedAhead = redis.call('ZCOUNT', key, '1', '(' .. int(arrival or EXCLUSIVE))
  exclusiveAhead = redis.call('ZCOUNT', key, int(EXCLUSIVE), '(' .. int(arrival and arrival + EXCLUSIVE or ARRIVALS))
end
local free
if shared then
  free = not exclusive and exclusiveAhead == 0 and room(held) > sharedAhead
else
  free = held == 0 and sharedAhead + exclusiveAhead == 0
end

if free then
  grant(owner, lease, floor)
  record.span = math.max(record.span, entry)
  if place then write('ZREM', key, 'x:' .. owner, 'q:' .. owner) end
  return finish({ 1, micros, lease, record.hw, processes() })
end

-- A woken one that finds nothing free counts as not woken, and its place is kept alive by the others of its process again. Else: 1 resize to 0
-- wakes all who wait, for it does not know their limit; 2 they are refused; 3 only the first of a process goes on asking; 4 the others' places end.
if ordered and place then record.woken = math.min(record.woken, arrival - 1) end

local gone = {}
if entry > 0 then
  record.span = math.max(record.span, entry)
  local last = int(QUEUED + now + entry)
  if place then
    add(last, 'x:' .. owner)
  else
    record.seq = record.seq + 1
    add(last, 'x:' .. owner, int(shared and record.seq or record.seq + EXCLUSIVE), 'q:' .. owner)
  end
  for i = 10, #ARGV do
    local at = score('q:' .. ARGV[i])
    if not at then
      gone[#gone + 1] = ARGV[i]
    elseif not ordered or at % EXCLUSIVE > record.woken then -- a woken one answers for itself
      add(last, 'x:' .. ARGV[i])
    end
  end
end

-- What is in the way: whoever holds it, all of them if this is an exclusive claim, the first to end if it is one too many; else the head
-- of the queue.
local inTheWay = 0
if exclusive or held > 0 and not shared then
  inTheWay = latest(HELD)
elseif room(held) <= 0 then
  inTheWay = earliest(HELD)
else
  local x, ofX = firstExclusive()
  local s, ofS = firstShared()
  local first = x < s and ofX or ofS
  if first and first ~= owner then inTheWay = (score('x:' .. first) or QUEUED) - QUEUED end
end
local reply = { 0, micros, math.max(inTheWay - now, 0), record.hw, processes() }
for _, other in ipairs(gone) do reply[#reply + 1] = other end
return finish(reply)
