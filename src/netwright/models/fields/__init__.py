"""Fields: functions of place and time, given by networks of coordinates."""
