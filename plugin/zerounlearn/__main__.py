"""`python -m zerounlearn`, and so `accelerate launch -m zerounlearn` and `torchrun -m zerounlearn`."""

from zerounlearn.cli import main

main(prog_name="zerounlearn")
