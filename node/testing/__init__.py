"""What the demo and the tests need and a hospital does not: made-up studies and stand-in peers."""
