"""Build shards one after the other: write each while the next is transformed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.metering import this_process
from joulecache.pipelines.building.shard import TransformedShard, finish_shard, transform_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.core.memory import reuse_memory


class ShardBuilder:
    """Builds shards with two of them in memory: one that is transformed, and one that is written in another thread."""

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, "write")
        self._writing: Future[None] | None = None

    def build(self, spec: ShardSpec) -> Future[None]:
        """Transform a shard, wait until the one before is written, and begin to write this one.

        Returns:
            The end of the writing; BuildError if neither the shard nor its result could be written.

        Raises:
            BuildError: Neither the shard before nor its result could be written.
        """
        if spec.metering.launcher != this_process():
            reuse_memory()
        workspace = Workspace(spec)
        try:
            transformed = transform_shard(workspace.spec)
            self.wait()
        except BaseException:
            workspace.close()
            raise
        self._writing = self._writer.submit(_finish, workspace, transformed)
        return self._writing

    def wait(self) -> None:
        """Wait until all shards are written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """End the other thread."""
        self._writer.shutdown()


def _finish(workspace: Workspace, transformed: TransformedShard) -> None:
    """Write a shard. On a full disk the error becomes the shard's result, so that the build fails with a one-line message."""
    try:
        finish_shard(workspace, transformed)
    except OSError as error:
        reason = error.strerror or str(error)
        try:
            workspace.fail(reason)
        except OSError:
            raise BuildError(f"shard {workspace.spec.shard} could not be written: {reason}") from None
    finally:
        workspace.close()
