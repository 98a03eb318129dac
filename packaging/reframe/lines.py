"""The lines of output that the checks look for; `\\1` is the figure, where there is one."""

WELL = r"^nothing is wrong$"
BANDWIDTH = r"^  {verb} +8 MiB .* ([\d.]+) GB/s"             # verb: mean, exchange, window add, window read
FINISHED = r"^│ status +│ finished +│"
ACCURACY = r"^│ accuracy +│ ([\d.]+)% +│"
RATE = r"^│ images_per_s +│ ([\d,]+) images/s +│"
RANKS = r"^│ ranks +│ (\d+) on (\d+) nodes? +│"
