-- The head of every script of the locks: it is put in front of each before it is sent. It reads the server's time once and knows the form
-- of a name's sorted set.
--
-- KEYS 1 the name's sorted set: all that is known of the name is in it
-- ARGV 1 name, 2 front of the wake-up channels (<prefix>:wake:), 3 alone: 1 if PUBLISH counts every listener (in a Cluster it does not),
--      4 ordered (1 or 0), 5 limit of shared holders (0: none), 6 owner; the scripts' own begin at 7
-- Returns {code, server us, rest ms, number, processes, ...}: the scripts say which code and number.
-- Atomic: each script looks at the whole of one name and changes it in one moment, and what it changed stands with an expiry.
--
--   member                                  score
--   s:hw|seq|woken|span|limit|last          -inf: the record. hw: highest token; seq: last arrival; woken: highest arrival that was woken
--                                           since a holder went; span: longest lease or entry seen; limit: as resized, 0: not; last: the owner
--                                           whose grant was given back last
--   h:<owner>, t:<owner>                    HELD + end of the lease; its token
--   x:<owner>, q:<owner>                    QUEUED + end of the entry; arrival (of an exclusive waiter: + EXCLUSIVE)
--   b:<owner>                               BURNED + end: never granted until then
--   n:<process>                             ALIVE + end: a process that asked for the name lately
--
-- Ends are milliseconds of the server's clock, tokens grow with its microseconds. All stay below 2^53, where a Lua number and a score are
-- exact; they are written with %.0f, since tostring would turn to exponents. Plain Lua only.
--
-- The first write decides what a full Redis (noeviction) does with a script: it refuses one that begins with ZADD, and lets one go on that
-- began with PEXPIREAT or ZREM. So acquire begins with ZADD, the others do not.

local key, name, front = KEYS[1], ARGV[1], ARGV[2]
local alone, ordered = ARGV[3] == '1', ARGV[4] == '1'
local limit, owner = tonumber(ARGV[5]), ARGV[6]

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local micros = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local HELD, QUEUED, BURNED, ALIVE = -4e15, -3e15, -2e15, -1e15
local CLASS = 1e15 -- the width of each of these ranges
local EXCLUSIVE = 1e13
local ARRIVALS = 1e14 -- above all arrivals, below all tokens

local CLAIM = 500     -- ms that a woken waiter has to answer where order counts; chosen; not tuned
local PRESENT = 5000  -- ms that a process counts after it asked; chosen; not tuned
local DAY = 86400000  -- ms that what nobody holds can keep a key
local KEEP = 60000    -- ms that a key stands beyond all that is in it, so that its expiry takes no token back; chosen; not tuned
local DEAF = 8        -- waiters with nobody listening that are passed in one script; chosen; not tuned
local CROWD = 256     -- shared waiters woken in one script: those who come in wake the rest; chosen; not tuned

local function int(n) return string.format('%.0f', n) end

local wrote = false
local function write(...)
  wrote = true
  return redis.call(...)
end

-- Nothing but the record stands, as sweep found: what looks for anything else has found nothing, without asking. A lock that one has and nobody
-- waits for is the common case, and each question costs about a microsecond.
local empty = false
local function add(...)
  empty = false
  return write('ZADD', key, ...)
end

local function score(member)
  if empty then return nil end
  local found = redis.call('ZSCORE', key, member)
  return found and tonumber(found) or nil
end

-- The bounds of a class, the whole of it or up to a moment.
local function from(base) return int(base) end
local function to(base) return '(' .. int(base + CLASS) end

local record = { hw = 0, seq = 0, woken = 0, span = 0, limit = 0, last = '' }
local stored = redis.call('ZRANGE', key, 0, 0)[1]
if stored and string.sub(stored, 1, 2) == 's:' then
  local hw, seq, woken, span, resized, last = string.match(stored, '^s:(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([^|]*)$')
  if hw then
    record.hw, record.seq, record.woken = tonumber(hw), tonumber(seq), tonumber(woken)
    record.span, record.limit, record.last = tonumber(span), tonumber(resized), last
  end
else
  stored = nil
end

local function save()
  local text = string.format('s:%.0f|%.0f|%.0f|%.0f|%.0f|%s',
    record.hw, record.seq, record.woken, record.span, record.limit, record.last)
  if text == stored then return end
  write('ZADD', key, '-inf', text)
  if stored then write('ZREM', key, stored) end
  stored = text
end

-- The latest and the earliest end of a class; 0: there is none.
local function latest(base)
  if empty then return 0 end
  local found = redis.call('ZREVRANGEBYSCORE', key, to(base), from(base), 'WITHSCORES', 'LIMIT', 0, 1)
  return found[2] and tonumber(found[2]) - base or 0
end
local function earliest(base)
  if empty then return 0 end
  local found = redis.call('ZRANGEBYSCORE', key, from(base), to(base), 'WITHSCORES', 'LIMIT', 0, 1)
  return found[2] and tonumber(found[2]) - base or 0
end

-- The key outlives every end in it, another end that is about to be written, and the time that its highest token names. What holds nobody's
-- place cannot keep it for longer than a day, should clocks have been wrong.
local function expire(another)
  local far, queued = math.max(record.hw / 1000, record.limit > 0 and now + DAY or 0), 0
  if not empty and redis.call('ZCOUNT', key, from(QUEUED), '(0') > 0 then
    far, queued = math.max(far, latest(BURNED), latest(ALIVE)), latest(QUEUED)
  end
  local last = math.max(now, latest(HELD), queued, another or 0, math.min(far, now + DAY))
  redis.call('PEXPIREAT', key, int(last + KEEP))
end

-- Drops what ended, each with what belongs to it, and returns how many those were. An end further ahead than span was set before the clock went
-- back: it comes nearer.
local function sweepClass(base, partner, span)
  local gone = redis.call('ZRANGEBYSCORE', key, from(base), int(base + now))
  for _, member in ipairs(gone) do
    write('ZREM', key, member, partner .. string.sub(member, 2))
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. int(base + now + span), to(base))) do
    add(int(base + now + span), member)
  end
  return #gone
end

local function sweep()
  empty = redis.call('ZCARD', key) == (stored and 1 or 0)
  if empty then return end
  if sweepClass(HELD, 't', record.span) > 0 then record.woken = 0 end
  sweepClass(QUEUED, 'q', record.span)
  sweepClass(BURNED, 'b', DAY)
  sweepClass(ALIVE, 'n', PRESENT)
end

-- How many hold, and whether that is an exclusive holder.
local function holders()
  if empty then return 0, false end
  local first = redis.call('ZRANGEBYSCORE', key, from(HELD), to(HELD), 'LIMIT', 0, 1)[1]
  if not first then return 0, false end
  if string.sub(first, 3, 3) == 'x' then return 1, true end
  return redis.call('ZCOUNT', key, from(HELD), to(HELD)), false
end

-- How many more shared holders there may be. A name that was resized has its own limit; where there is none, none was resized.
local function room(held)
  if limit == 0 then return math.huge end
  return (record.limit > 0 and record.limit or limit) - held
end

local function processOf(of) return string.match(of, '^[xs]%.([%w_-]+)%.') end

-- The arrival of the first waiter in a range of scores, math.huge if there is none, and its owner.
local function head(low, high)
  if empty then return math.huge end
  local found = redis.call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES', 'LIMIT', 0, 1)
  if not found[1] then return math.huge end
  local arrival = tonumber(found[2])
  if arrival >= EXCLUSIVE then arrival = arrival - EXCLUSIVE end
  return arrival, string.sub(found[1], 3)
end
local function firstShared() return head('1', '(' .. int(EXCLUSIVE)) end
local function firstExclusive() return head(int(EXCLUSIVE), '(' .. int(ARRIVALS)) end

-- Adds up to n waiters of a range to list, as {arrival, owner}.
local function line(list, low, high, n)
  local found = redis.call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES', 'LIMIT', 0, n)
  for i = 1, #found, 2 do
    local arrival = tonumber(found[i + 1])
    if arrival >= EXCLUSIVE then arrival = arrival - EXCLUSIVE end
    list[#list + 1] = { arrival, string.sub(found[i], 3) }
  end
  return list
end

-- The waiters that are to be woken if something is free, in the order of their arrival and with some more behind them, and how many of
-- them may come in. None: nothing is free, or they were woken before.
local function due()
  local held, exclusive = holders()
  if exclusive then return 0 end
  local x, s = firstExclusive(), firstShared()
  if x == math.huge and s == math.huge then return 0 end
  if x < s then
    if held > 0 or x <= record.woken then return 0 end
    local list = line({}, int(EXCLUSIVE), '(' .. int(ARRIVALS), 1 + DEAF)
    line(list, '1', '(' .. int(EXCLUSIVE), DEAF)
    table.sort(list, function(a, b) return a[1] < b[1] end)
    return 1, list
  end
  local stop = '(' .. int(math.min(x, EXCLUSIVE))
  local fit = room(held) - redis.call('ZCOUNT', key, '1', int(record.woken)) -- those are woken, and on their way
  if fit <= 0 then return 0 end
  return fit, line({}, '(' .. int(record.woken), stop, math.min(fit + DEAF, CROWD))
end

-- Wakes whoever may come in now: the last step of every script, on every way out of it, for the sweep may have freed something whatever
-- the script itself was about. Where order counts a woken waiter has CLAIM ms to answer; then whoever asks next clears it away.
--
-- A waiter to whom nobody listens is passed for the next, which is told in its stead and keeps its own turn; the deaf one keeps its place.
local function wake()
  local fit, list = due()
  if fit == 0 then return end
  local passed, spare = 0, 0
  for _, waiter in ipairs(list) do
    local arrival, who = waiter[1], waiter[2]
    local turn = fit > 0
    if turn then
      fit = fit - 1
      record.woken = math.max(record.woken, arrival)
      if ordered and (score('x:' .. who) or QUEUED) > QUEUED + now + CLAIM then
        add(int(QUEUED + now + CLAIM), 'x:' .. who)
      end
    elseif spare > 0 then
      spare = spare - 1
    else
      return
    end
    local heard = redis.pcall('PUBLISH', front .. processOf(who), who .. ' ' .. name)
    if alone and heard == 0 and passed < DEAF then passed, spare = passed + 1, spare + 1 end
  end
end

local function finish(reply)
  wake()
  save()
  if wrote then expire() end
  return reply
end

-- A grant to who: a token above all that were given, above the server's time and above all that the asker knows.
local function grant(who, lease, floor)
  record.hw = math.max(record.hw + 1, micros, floor + 1)
  record.span = math.max(record.span, lease)
  add(int(HELD + now + lease), 'h:' .. who, int(record.hw), 't:' .. who)
end

-- A call with a token that the record does not know: the data behind it was lost. Its token is kept as the highest, and whoever was
-- granted an older one meanwhile is dropped: the resource may have seen the newer.
local function refuse(token)
  if token <= record.hw then return end
  record.hw = token
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, from(HELD), to(HELD))) do
    write('ZREM', key, member, 't' .. string.sub(member, 2))
    record.woken = 0
  end
end

