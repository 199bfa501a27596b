"""SGLang-diffusion on a CPU, for the tests: fetched, with stand-ins, in a process of its own."""
