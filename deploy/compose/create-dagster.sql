-- For `--profile database`: the image makes one database, Dagster's history wants its own.
CREATE DATABASE dagster;
