"""edge-app: a headless camera appliance that runs an int8 MobileNet and reports over MQTT."""

__version__ = "0.1.0"
