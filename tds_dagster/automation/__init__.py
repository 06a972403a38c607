"""When things are built, and what is checked of them: schedules, sensors, conditions, checks."""
