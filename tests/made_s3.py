"""An S3 of one's own on this machine: moto's server in a process of its own, which forgets everything at its end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from made_cluster import free_ports, wait_for
from s3fs import S3FileSystem

BUCKET = "lab"


@dataclass(frozen=True)
class S3:
    """A bucket, and the environment that leads fsspec, pyarrow, boto3 and MLflow to it and nowhere else."""

    env: dict[str, str]

    def uri(self, name: str = "") -> str:
        """The place of a file or folder in the bucket."""
        return f"s3://{BUCKET}/{name}".rstrip("/")

    def client(self) -> Any:
        """boto3's, for what file systems do not do."""
        return boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
        )


@contextmanager
def started_s3() -> Iterator[S3]:
    """An empty bucket. The environment is handed out and not set: see `monkeypatch.setenv`, `started_cluster`."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server, "the S3 server")
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "made-up",
            "AWS_SECRET_ACCESS_KEY": "made-up-secret-of-the-bucket",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        s3 = S3(env)
        s3.client().create_bucket(Bucket=BUCKET)
        S3FileSystem.clear_instance_cache()  # it would ask the server of an earlier test
        yield s3
    finally:
        server.kill()
        server.wait()
