"""`warmtalk quality`: measures how real a talking-head video looks and writes a report."""
