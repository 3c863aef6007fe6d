"""Networks for signals: radio and speech."""
