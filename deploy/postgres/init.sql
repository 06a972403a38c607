-- Beside the database of conversations, which the image makes, one for Dagster's runs and events.
CREATE DATABASE dagster;
