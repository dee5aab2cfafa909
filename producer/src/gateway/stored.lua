-- What a tenant has stored: takes room for something that is about to be, settles it, or takes a new count down.
--
-- KEYS[1]  hash: bytes, files, batches (what is on S3), since_bytes, since_files, since_batches (of that, what came since the
--          count that is under way began), counted_ms (when the last count began)
-- KEYS[2]  hash: of each thing that is being stored "bytes expires_at": an upload, the vectors of a job
-- ARGV     what to do, and its arguments
-- Answers  {word, number, counted_ms, what the thing had before}
--
-- The clock is Redis' own. A job's room that nobody settled is taken for written when its window is over: too much rather
-- than too little, until the next count.

-- Longer than any window: a count that nobody needs for so long is made anew.
local KEPT_S = 30 * 86400
local time = redis.call('TIME')
local now_s = tonumber(time[1])
local what = ARGV[1]

local function number(text)
  return tonumber(text or '0') or 0
end

local function add(field, by)
  if by ~= 0 and redis.call('HEXISTS', KEYS[1], field) == 1 then
    redis.call('HINCRBY', KEYS[1], field, string.format('%.0f', by))
    redis.call('HINCRBY', KEYS[1], 'since_' .. field, string.format('%.0f', by))
  end
end

if what == 'begin' then
  redis.call('HSET', KEYS[1], 'since_bytes', '0', 'since_files', '0', 'since_batches', '0')
  redis.call('EXPIRE', KEYS[1], KEPT_S)
  return {'begun', now_s * 1000 + math.floor(time[2] / 1000), '0', ''}
end

if what == 'counted' then
  -- ARGV: bytes, files, batches, counted_ms. What came meanwhile may or may not be in the count: it is counted, so that
  -- nobody has more than is known of.
  for index, field in ipairs({'bytes', 'files', 'batches'}) do
    local since = math.max(number(redis.call('HGET', KEYS[1], 'since_' .. field)), 0)
    redis.call('HSET', KEYS[1], field, string.format('%.0f', tonumber(ARGV[index + 1]) + since))
  end
  redis.call('HSET', KEYS[1], 'counted_ms', ARGV[5])
  redis.call('EXPIRE', KEYS[1], KEPT_S)
  return {'counted', 0, ARGV[5], ''}
end

if what == 'settle' then
  -- ARGV: the thing, bytes that it came to or 'all' that was taken for it, files, batches
  local entry = redis.call('HGET', KEYS[2], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
  local bytes = tonumber(ARGV[3])
  if not bytes then
    bytes = entry and number(string.match(entry, '^(%d+) ')) or 0
  end
  add('bytes', bytes)
  add('files', number(ARGV[4]))
  add('batches', number(ARGV[5]))
  return {'settled', bytes, '0', ''}
end

-- 'take': the thing, bytes, expires_at, most bytes or '', files, most files, batches, most batches
local thing = ARGV[2]
local asked = tonumber(ARGV[3])
local before = redis.call('HGET', KEYS[2], thing) or ''
local seen = redis.call('HMGET', KEYS[1], 'bytes', 'files', 'batches', 'counted_ms')
local counted_ms = seen[4] or '0'
local held = 0
local last = tonumber(ARGV[4])
local entries = redis.call('HGETALL', KEYS[2])
for index = 1, #entries, 2 do
  local of, until_s = string.match(entries[index + 1], '^(%d+) (%d+)$')
  if not of or tonumber(until_s) <= now_s then
    redis.call('HDEL', KEYS[2], entries[index])
    if of and string.sub(entries[index], 1, 4) == 'job:' then
      add('bytes', tonumber(of))
    end
  elseif entries[index] ~= thing then
    held = held + tonumber(of)
    last = math.max(last, tonumber(until_s))
  end
end
if not seen[1] and ARGV[5] ~= '' then
  return {'uncounted', 0, counted_ms, before}
end
local bytes = number(redis.call('HGET', KEYS[1], 'bytes'))
if ARGV[5] ~= '' and bytes + held + asked > tonumber(ARGV[5]) then
  return {'bytes', bytes + held, counted_ms, before}
end
if number(seen[2]) + tonumber(ARGV[6]) > tonumber(ARGV[7]) then
  return {'files', number(seen[2]), counted_ms, before}
end
if number(seen[3]) + tonumber(ARGV[8]) > tonumber(ARGV[9]) then
  return {'batches', number(seen[3]), counted_ms, before}
end
redis.call('HSET', KEYS[2], thing, string.format('%.0f %.0f', asked, tonumber(ARGV[4])))
redis.call('EXPIREAT', KEYS[2], string.format('%.0f', last))
return {seen[1] and 'taken' or 'uncounted_taken', bytes + held + asked, counted_ms, before}
