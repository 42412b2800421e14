"""The paper's yardstick: the Fréchet video distance on UCF-101 and MSR-VTT, from a person's own copies."""
