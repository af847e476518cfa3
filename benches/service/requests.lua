-- wrk's requests: `wrk … -- live|get|list|post|put USERS`. Ends with one line of JSON; latencies in microseconds.
local call, users, sent, requests = nil, 0, 0, {}
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init(arguments)
  call, users = arguments[1], tonumber(arguments[2])
  math.randomseed(os.time() * 1000 + number)
  -- Built in advance, so that building them takes no CPU time from the candidates.
  if call == "live" then
    requests[1] = wrk.format("GET", "/health/live")
  elseif call == "list" then
    requests[1] = wrk.format("GET", "/users?limit=100")
  elseif call == "post" then
    local body = '{"name":"Имя","surname":"Фамилия","password":"correct horse battery staple"}'
    requests[1] = wrk.format("POST", "/users", { ["Content-Type"] = "application/json" }, body)
  elseif call == "get" then
    for id = 1, users do
      requests[id] = wrk.format("GET", "/users/" .. id)
    end
  end
end

function request()
  if call == "get" then
    return requests[math.random(users)]
  elseif call ~= "put" then
    return requests[1]
  end
  -- A new value each time, so that each PUT is a change.
  sent = sent + 1
  local value = string.format("%08d%08d", sent, math.random(99999999))
  local body = '{"name":"Имя' .. value .. '","surname":"Фамилия' .. value .. '"}'
  return wrk.format("PUT", "/users/" .. math.random(users), { ["Content-Type"] = "application/json" }, body)
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    '{"requests":%d,"seconds":%f,"p50":%d,"p99":%d,"errors":%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99), failed
  ))
end
