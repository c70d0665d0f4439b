"""Rollouts as pure tables and judgements: facts and a time in, decisions out. No SQL, no clock, no network."""
