"""The commands, by topic. They parse, call and print; what they call is elsewhere in meshaudit."""
