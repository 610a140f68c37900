-- segments: turns the head of a name's shared filters: which one is asked, which one is being built, which one was asked before; how far the build
-- came, and what change feeds have told.
--
-- KEYS 1 head, a hash of the fields serving, rows, building, builder, left, old, moved, fed, lag
-- ARGV 1 turn (keep, begin, resume, leave, move, abandon, drop, forget, feed), 2 layout, 3 builder, 4 rows, how far the build came, or ms of lag,
--      5 expiry ms, 6 how long an old filter is kept, ms, 7 channel, 8 event of a move
-- Returns {1 if the turn was made or had been, else 0, now, serving, rows, building, old, replaced, ms since the move, builder, left, fed, lag}; what
-- there is not is empty
--
-- Atomic: of two builders the one that began last, or that took over, moves, and the other, however long it was paused, does not. A repeated move finds
-- its layout served.

local head, turn, layout = KEYS[1], ARGV[1], ARGV[2]
local kind = redis.call('TYPE', head).ok
if turn == 'begin' and kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', head) end

local function field(name) return redis.call('HGET', head, name) or '' end
local function forget() redis.call('HDEL', head, 'building', 'builder', 'left') end

local builds = field('building') == layout and field('builder') == ARGV[3]
local code, replaced = 1, ''
if turn == 'begin' then
  replaced = field('building')
  forget()
  redis.call('HSET', head, 'building', layout, 'builder', 1)
elseif turn == 'resume' then
  if field('building') == layout and field('left') ~= '' then redis.call('HINCRBY', head, 'builder', 1) else code = 0 end
elseif turn == 'leave' then
  if builds then redis.call('HSET', head, 'left', ARGV[4]) else code = 0 end
elseif turn == 'move' and builds then
  replaced = field('old')
  local was = field('serving')
  forget()
  redis.call('HDEL', head, 'old')
  redis.call('HSET', head, 'serving', layout, 'rows', ARGV[4], 'moved', int(now))
  if was ~= '' then redis.call('HSET', head, 'old', was) end
elseif turn == 'move' and field('serving') ~= layout then
  code = 0
elseif turn == 'abandon' then
  if builds then
    forget()
  elseif field('building') == layout or field('serving') == layout then -- by who took over
    code = 0
  end
elseif turn == 'drop' or turn == 'forget' then
  if layout ~= '' and field('serving') == layout then
    replaced = layout
    redis.call('HDEL', head, 'serving', 'rows')
  end
  if turn == 'forget' then
    if replaced == '' then replaced = field('building') end
    forget()
  end
elseif turn == 'feed' then
  redis.call('HINCRBY', head, 'fed', 1)
  redis.call('HSET', head, 'lag', ARGV[4])
end
local moved = tonumber(field('moved')) or 0
if (turn == 'keep' or turn == 'drop' or turn == 'forget') and replaced == '' and field('old') ~= '' and now >= moved + tonumber(ARGV[6]) then
  replaced = field('old')
  redis.call('HDEL', head, 'old')
end
if replaced == layout and turn == 'begin' then replaced = '' end
if turn == 'move' then redis.call('PUBLISH', ARGV[7], ARGV[8]) end -- also one that was refused: the event has a number, which would be missed
redis.call('PEXPIRE', head, ARGV[5])
return {
  code, now, field('serving'), field('rows'), field('building'), field('old'), replaced, math.max(0, now - moved), field('builder'), field('left'),
  field('fed'), field('lag'),
}
