"""How far maps agree with the network that they explain: measured by taking away what they point at."""
