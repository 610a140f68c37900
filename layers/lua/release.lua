-- release: gives the lease back after a load that stores nothing, and lets a failing key rest.
--
-- KEYS 1 guard
-- ARGV 1 token, 2 base ms (0: no back-off), 3 longest back-off ms, 4 delete window ms, 5 channel, 6 ready event, 7 stamp of the grant, or empty: whichever
-- Returns {1, now} released, {0, now} the lease was not this one any more
--
-- The first failure in a row only counts; from the second on the key rests for base * 2^(failures - 2), at most the longest. The guard
-- outlives the rest by the longest back-off, so that the next failure is still "in a row".
--
-- Without a stamp it is for a token whose acquire was never answered: nobody will fill under it, whenever it was granted.
--
-- Atomic: the lease that is cleared must be the one that was compared. A repeat finds another lease or none and changes nothing.

local base, longest = tonumber(ARGV[2]), tonumber(ARGV[3])

local g = readGuard(KEYS[1])
if g.token ~= ARGV[1] or ARGV[7] ~= '' and g.stamp ~= ARGV[7] then return { 0, now } end

endLease(g)
if base > 0 then
  g.fails = math.min(g.fails + 1, 99)
  g.backEnd = now
  if g.fails > 1 then g.backEnd = now + math.floor(math.min(base * 2 ^ (g.fails - 2), longest)) end
  g.failEnd = g.backEnd + longest
end
g.woken, g.waited = g.waited == 1, 0
saveGuard(KEYS[1], g, tonumber(ARGV[4]))
wake(g, ARGV[5], ARGV[6])
return { 1, now }
