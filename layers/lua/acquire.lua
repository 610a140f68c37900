-- acquire: reads the value again and, if there is still nothing fresh, grants the lease to rebuild it.
--
-- KEYS 1 value, 2 guard
-- ARGV 1 generation, 2 token, 3 lease ms, 4 slice ms (life of a value granted while a write is pending), 5 delete window ms,
--      6 want stale (1 or 0), 7 stored-at of the copy that the rebuild means to replace (0: none)
-- Returns {0, now, 0, value}                   fresh
--         {1, now, cut, stale?, stamp}         granted; cut: when a value filled under this lease must be gone, 0: no such moment
--         {2, now, lease end, stale?}          held by another
--         {3, now, back-off end, stale?}       the last loads failed
--
-- Atomic: the second look and the grant are one moment. Else: 1 B reads nothing; 2 A fills and releases; 3 B is granted and loads again.
-- A repeat finds its own lease and is answered as the first time: same stamp, same cut.

local generation, token = tonumber(ARGV[1]), ARGV[2]
local lease, slice, window = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local value = read('GET', KEYS[1])
local e = header(value)
if e and e.generation < generation then e = nil end
if e and e.soft > now and e.stored > tonumber(ARGV[7]) then return { 0, now, 0, value } end
local stale = ARGV[6] == '1' and e and e.hard > now and value or false -- a nil would end the reply here

local g = readGuard(KEYS[2])
local mine = g.token == token
if g.token ~= '' and not mine and g.leaseGen >= generation then
  if g.waited == 0 then
    g.waited = 1
    saveGuard(KEYS[2], g, window)
  end
  return { 2, now, g.leaseEnd, stale }
end
if g.token == '' and g.backEnd > now then return { 3, now, g.backEnd, stale } end

if not mine then
  -- What a load under this grant may read is decided now, however late its fill comes.
  g.token, g.stamp, g.cut = token, int(micros), 0
  if g.pendEnd > now then
    g.cut = now + slice
  elseif g.pendEnd + window > now then
    g.cut = g.pendEnd + window
  elseif g.winEnd > now then
    g.cut = g.winEnd
  end
end
g.leaseEnd, g.leaseGen = now + lease, generation
saveGuard(KEYS[2], g, window)
return { 1, now, g.cut, stale, g.stamp }
