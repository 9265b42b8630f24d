"""The loop, and the faces it shows: schedule, forward, update. The only room that joins all others."""
