"""Time, energy and money of a whole run. Imports no torch."""

from typing import NamedTuple

from launch.estimate.devices import Device


class Cost(NamedTuple):
    """Of a run, with the interval of its time."""

    seconds: float
    low_s: float
    high_s: float
    gpu_hours: float  # of a CPU: hours of machines
    kilowatt_hours: float  # of the devices alone, without cooling
    price: float | None  # in the currency of the rate; None without one

    @property
    def days(self) -> float:
        """The time in days."""
        return self.seconds / 86_400


def cost_of(
    seconds: tuple[float, float, float],
    device: Device,
    *,
    ranks: int,
    nodes: int,
    watts: float | None = None,
    price_per_hour: float | None = None,
) -> Cost:
    """seconds: expected, least and most. watts, price_per_hour: of one GPU, or of one machine."""
    expected, low, high = seconds
    devices = nodes if device.name == "cpu" else ranks
    hours = devices * expected / 3600
    power = device.watts if watts is None else watts
    price = None if price_per_hour is None else price_per_hour * hours
    return Cost(expected, low, high, hours, power * hours / 1000, price)
