-- `carried`: the newest number that was ever written onto a stick. What a stick has is not merged any more, but it may
-- be dropped when the outbox is full: a stick that never came back must not keep everything newer away.
ALTER TABLE outbox ADD COLUMN carried INTEGER NOT NULL DEFAULT -1;
