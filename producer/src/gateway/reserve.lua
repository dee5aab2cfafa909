-- Reserves a job's tokens and its place among its tenant's jobs: checks both, then writes both or nothing.
--
-- KEYS[1]  hash: of each job that is queued "tokens expires_at", the latter in Unix seconds
-- ARGV     job, tokens, expires_at, jobs at once, queued tokens
-- Answers  {'reserved', 0}, {'jobs', how many there are} or {'tokens', how many are queued}
--
-- A job that is there already is reserved anew, not twice. The clock is Redis' own.

local job = ARGV[1]
local tokens = tonumber(ARGV[2])
local expires_at = tonumber(ARGV[3])
local now_s = tonumber(redis.call('TIME')[1])

local jobs = 0
local queued = 0
local last = expires_at
local entries = redis.call('HGETALL', KEYS[1])
for index = 1, #entries, 2 do
  local of, until_s = string.match(entries[index + 1], '^(%d+) (%d+)$')
  if not of or tonumber(until_s) <= now_s then
    redis.call('HDEL', KEYS[1], entries[index])
  elseif entries[index] ~= job then
    jobs = jobs + 1
    queued = queued + tonumber(of)
    last = math.max(last, tonumber(until_s))
  end
end
if jobs + 1 > tonumber(ARGV[4]) then
  return {'jobs', jobs}
end
if queued + tokens > tonumber(ARGV[5]) then
  return {'tokens', queued}
end
redis.call('HSET', KEYS[1], job, string.format('%.0f %.0f', tokens, expires_at))
redis.call('EXPIREAT', KEYS[1], string.format('%.0f', last))
return {'reserved', 0}
