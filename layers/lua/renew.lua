-- renew: keeps a lease or a pending write alive while its process is.
--
-- KEYS 1 guard
-- ARGV 1 kind ("lease" or "pend"), 2 token, 3 ms from now on, 4 delete window ms, 5 stamp of the grant (lease only)
-- Returns {1, now} it stands, {0, now} the lease is lost: load on, the fill will be refused
--
-- A pending write is brought back if its guard was evicted. One whose renewal comes after its end is pending again: its process ends it again if it
-- was not told of that renewal.
--
-- Atomic: what is extended must be what was compared. A repeat extends once more; a copy that comes late can shorten nothing.

local token, ends, window = ARGV[2], now + tonumber(ARGV[3]), tonumber(ARGV[4])

local g = readGuard(KEYS[1])
if ARGV[1] == 'lease' then
  if g.token ~= token or g.stamp ~= ARGV[5] then return { 0, now } end
  g.leaseEnd = math.max(g.leaseEnd, ends)
else
  pends(g, token, ends)
end
saveGuard(KEYS[1], g, window)
return { 1, now }
