-- segments: turns the head of a name's shared filters: which one is asked, which one is being built, which one was asked before.
--
-- KEYS 1 head, a hash of the fields serving, rows, building, old, moved
-- ARGV 1 turn (keep, begin, move, abandon, drop), 2 layout, 3 rows, 4 expiry ms, 5 how long an old filter is kept, ms, 6 channel, 7 event of a move
-- Returns {1 if the turn was made or had been, else 0, now, serving, rows, building, old, replaced}; what there is not is empty
--
-- Atomic: of two builders the one that began last moves, and the other, however long it was paused, does not. A repeated move finds its
-- layout served.

local head, turn, layout = KEYS[1], ARGV[1], ARGV[2]
local kind = redis.call('TYPE', head).ok
if turn == 'begin' and kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', head) end

local function field(name) return redis.call('HGET', head, name) or '' end

local code, replaced = 1, ''
if turn == 'begin' then
  replaced = field('building')
  redis.call('HSET', head, 'building', layout)
elseif turn == 'move' and field('building') == layout then
  replaced = field('old')
  local was = field('serving')
  redis.call('HDEL', head, 'building', 'old')
  redis.call('HSET', head, 'serving', layout, 'rows', ARGV[3], 'moved', int(now))
  if was ~= '' then redis.call('HSET', head, 'old', was) end
elseif turn == 'move' and field('serving') ~= layout then
  code = 0
elseif turn == 'abandon' and field('building') == layout then
  redis.call('HDEL', head, 'building')
elseif turn == 'drop' and field('serving') == layout then
  replaced = layout
  redis.call('HDEL', head, 'serving', 'rows')
end
if (turn == 'keep' or turn == 'drop') and replaced == '' and field('old') ~= '' and now >= (tonumber(field('moved')) or 0) + tonumber(ARGV[5]) then
  replaced = field('old')
  redis.call('HDEL', head, 'old')
end
if replaced == layout and turn == 'begin' then replaced = '' end
if turn == 'move' then redis.call('PUBLISH', ARGV[6], ARGV[7]) end -- also one that was refused: the event has a number, which would be missed
redis.call('PEXPIRE', head, ARGV[4])
return { code, now, field('serving'), field('rows'), field('building'), field('old'), replaced }
