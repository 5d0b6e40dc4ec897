"""Two models beside each other: latency, throughput, memory, energy, in several runtimes."""
