INSERT INTO lifts (server, step, republish, trace_id, last_id, lifted_to, lifted, ended_at) VALUES ('1/1', 1000, false, 'step-9', 3, 3, 2, now());
