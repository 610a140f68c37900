-- The head of every script: it is put in front of each before it is sent. It reads the server's time once, and knows the forms of the
-- guard and of the envelope. Plain Lua only (no struct, bit or cmsgpack): embedded servers have nothing else.
--
-- Times are milliseconds of the server's clock, except stamps and generations, which are microseconds. All stay below 2^53, where a
-- Lua number is exact; they are written with %.0f, since tostring would turn to exponents.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local micros = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local ABSENT, VERSIONED, MARKER = 1, 4, 16 -- flags of the envelope

local function int(n) return string.format('%.0f', n) end

-- A key of another type is unreadable: it reads as missing, and the next SET takes its place.
local function read(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) ~= 'table' then return reply end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return false end
  return redis.call(command, ...) -- fails as it did before
end

-- The guard: one string of fields, so that one SET ... PXAT writes it and it never stands without an expiry.
-- token|stamp|leaseEnd|cut|leaseGen|winEnd|setEnd|pendEnd|pendToken|multi|backEnd|failEnd|fails|minVersion|waited
local FORM = '^([%w_-]*)|(%d*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|([%w_-]*)|(%d)|(%d+)|(%d+)|(%d+)|(%x*)|(%d)$'
local NUMBERS = { 'leaseEnd', 'cut', 'leaseGen', 'winEnd', 'setEnd', 'pendEnd', 'multi', 'backEnd', 'failEnd', 'fails', 'waited' }

local function endLease(g)
  g.token, g.stamp, g.leaseEnd, g.cut, g.leaseGen = '', '', 0, 0, 0
end

-- An unreadable guard is an empty one. A lease whose end has passed is no lease, a pending write whose end has passed has no owner
-- (its end stays: the last window counts from it).
local function readGuard(key)
  local g = {}
  g.token, g.stamp, g.leaseEnd, g.cut, g.leaseGen, g.winEnd, g.setEnd, g.pendEnd, g.pendToken, g.multi, g.backEnd, g.failEnd,
    g.fails, g.minVersion, g.waited = string.match(read('GET', key) or '', FORM)
  if not g.token then
    g.token, g.stamp, g.pendToken, g.minVersion = '', '', '', ''
  end
  for _, name in ipairs(NUMBERS) do g[name] = tonumber(g[name] or 0) or 0 end
  if g.leaseEnd <= now then endLease(g) end
  if g.pendEnd <= now then g.pendToken, g.multi = '', 0 end
  return g
end

-- Writes under way stand in pendToken, each as its owner's token and the moment at which it is pending no longer, 29 characters; pendEnd is the
-- last of these moments. multi is 1 where there were more owners than fit, or what stands there names no moment, as of a release before this
-- form: then nobody can tell who is done, and all run out together.
local OWNER, OWNERS = 29, 8
local ENDS = '^' .. string.rep('.', 16) .. '(' .. string.rep('%d', 13) .. ')$'

-- The owners other than token that have not run out, and when the last of them does.
local function others(g, token)
  local rest, last = '', 0
  for i = 1, #g.pendToken, OWNER do
    local owner = string.sub(g.pendToken, i, i + OWNER - 1)
    local ends = tonumber(string.match(owner, ENDS) or '')
    if not ends then
      g.multi = 1
    elseif ends > now and string.sub(owner, 1, 16) ~= token then
      rest, last = rest .. owner, math.max(last, ends)
    end
  end
  return rest, last
end

local function pends(g, token, ends)
  local rest = others(g, token)
  if #rest < OWNERS * OWNER then
    rest = rest .. token .. string.format('%013.0f', ends)
  else
    g.multi = 1
  end
  g.pendToken, g.pendEnd = rest, math.max(g.pendEnd, ends)
end

-- Whoever ends a write opens a window, which covers the last one of all that ran out before: those need none of their own.
local function pendsNoMore(g, token)
  local rest, last = others(g, token)
  g.pendToken = rest
  if g.multi == 0 then g.pendEnd = last end
end

-- The guard stands until the last of what it knows has passed; window is the delete window, which a pending write runs out into.
local function saveGuard(key, g, window)
  local last = math.max(g.leaseEnd, g.winEnd, g.setEnd, g.failEnd)
  if g.pendEnd > 0 then last = math.max(last, g.pendEnd + window) end
  if last <= now then
    redis.call('DEL', key)
    return
  end
  redis.call('SET', key, string.format('%s|%s|%.0f|%.0f|%.0f|%.0f|%.0f|%.0f|%s|%d|%.0f|%.0f|%.0f|%s|%d',
    g.token, g.stamp, g.leaseEnd, g.cut, g.leaseGen, g.winEnd, g.setEnd, g.pendEnd, g.pendToken, g.multi, g.backEnd, g.failEnd,
    g.fails, g.minVersion, g.waited), 'PXAT', int(last))
end

-- Wakes those who were told "held"; it comes after the guard is saved.
local function wake(g, channel, event)
  if g.woken then redis.call('PUBLISH', channel, event) end
end

-- How many copies of the value may stand in other slots, as the note beside it says; 0 where there is none.
local function noted(key)
  return tonumber(key and read('GET', key) or 0) or 0
end

local function u32(n)
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
end

local function u64(n)
  local high = math.floor(n / 4294967296)
  return u32(high) .. u32(n - high * 4294967296)
end

local function number(s, i)
  local a, b, c, d, e, f, g, h = string.byte(s, i, i + 7)
  return ((((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g) * 256 + h
end

local function has(flags, bit) return math.floor(flags / bit) % 2 == 1 end

-- The envelope's header, of the whole value or of its first 68 bytes; nil if it is missing, truncated, foreign, of another format, or stored
-- at a moment that no clock gives.
local function header(s)
  if not s or #s < 68 or string.sub(s, 1, 3) ~= 'tc\1' then return nil end
  local stored = number(s, 17)
  if stored == 0 or stored >= 9007199254740992 then return nil end -- 2^53
  return { flags = string.byte(s, 4), generation = number(s, 9), stored = stored, soft = number(s, 25), hard = number(s, 33) }
end

local function peek(key)
  local s = read('GETRANGE', key, 0, 67)
  return header(s), s
end

-- The first eight bytes and the tail (row version, cost) are the caller's; the moments are the server's.
local function envelope(head, generation, soft, hard, tail, token, payload)
  return head .. u64(generation) .. u64(now) .. u64(soft) .. u64(hard) .. tail .. token .. payload
end

-- A row version as 16 hex digits: their order is the numbers' order in every locale, and a Lua number could not hold them.
local function hex(s, i)
  return string.format('%02x%02x%02x%02x%02x%02x%02x%02x', string.byte(s, i, i + 7))
end

