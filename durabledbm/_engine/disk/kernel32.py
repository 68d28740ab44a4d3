"""The system calls of Windows that `windows` builds on, through ctypes.

One function for each, which does nothing but call, and turn a failure into an `OSError`. ctypes releases the GIL during
each call. Only the structures can be looked at elsewhere; the class exists on Windows only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from .windows import Handle, InUse, WindowsVolume

__all__ = ["ByHandleFileInformation", "FileIdInfo", "Overlapped"]


class Overlapped(ctypes.Structure):
    """OVERLAPPED: where to read, write or lock."""

    _fields_ = (
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", ctypes.c_uint32),
        ("OffsetHigh", ctypes.c_uint32),
        ("hEvent", ctypes.c_void_p),
    )

    @classmethod
    def at(cls, offset: int) -> Overlapped:
        """The structure for an offset of 64 bits."""
        return cls(0, 0, offset & 0xFFFFFFFF, offset >> 32, None)


class ByHandleFileInformation(ctypes.Structure):
    """BY_HANDLE_FILE_INFORMATION."""

    _fields_ = (
        ("dwFileAttributes", ctypes.c_uint32),
        ("ftCreationTime", ctypes.c_uint32 * 2),
        ("ftLastAccessTime", ctypes.c_uint32 * 2),
        ("ftLastWriteTime", ctypes.c_uint32 * 2),
        ("dwVolumeSerialNumber", ctypes.c_uint32),
        ("nFileSizeHigh", ctypes.c_uint32),
        ("nFileSizeLow", ctypes.c_uint32),
        ("nNumberOfLinks", ctypes.c_uint32),
        ("nFileIndexHigh", ctypes.c_uint32),
        ("nFileIndexLow", ctypes.c_uint32),
    )


class FileIdInfo(ctypes.Structure):
    """FILE_ID_INFO."""

    _fields_ = (
        ("VolumeSerialNumber", ctypes.c_uint64),
        ("FileIdLow", ctypes.c_uint64),
        ("FileIdHigh", ctypes.c_uint64),
    )

    def identity(self) -> tuple[int, int]:
        """As numbers."""
        return self.VolumeSerialNumber, self.FileIdHigh << 64 | self.FileIdLow


if sys.platform == "win32":
    from ctypes import wintypes

    __all__ += ["FileVolume", "Kernel32"]

    _GENERIC_READ = 0x80000000
    _GENERIC_WRITE = 0x40000000
    _SHARE_ALL = 0x1 | 0x2 | 0x4  # read, write, delete
    _CREATE_NEW, _OPEN_EXISTING = 1, 3
    _ATTRIBUTE_NORMAL = 0x80
    _OPEN_REPARSE_POINT = 0x00200000  # a symbolic link is not followed
    _BACKUP_SEMANTICS = 0x02000000  # a directory can be opened
    _FILE_TYPE_DISK = 1
    _FILE_END_OF_FILE_INFO, _FILE_ID_INFO = 6, 18
    _FAIL_IMMEDIATELY, _EXCLUSIVE = 0x1, 0x2
    _REPLACE_EXISTING, _WRITE_THROUGH = 0x1, 0x8
    _ERROR_ACCESS_DENIED = 5
    _ERROR_INVALID_FUNCTION = 1
    _ERROR_SHARING_VIOLATION, _ERROR_LOCK_VIOLATION = 32, 33
    _ERROR_HANDLE_EOF = 38
    _ERROR_NOT_SUPPORTED = 50
    _ERROR_INVALID_PARAMETER = 87
    _ERROR_IO_PENDING = 997
    _UNKNOWN_HERE = (_ERROR_INVALID_FUNCTION, _ERROR_NOT_SUPPORTED, _ERROR_INVALID_PARAMETER)
    """What a file system says that does not know what it is asked for."""
    _INVALID = ctypes.c_void_p(-1).value

    _dll = ctypes.WinDLL("kernel32", use_last_error=True)

    def _declare(name: str, *types: object, result: object = wintypes.BOOL) -> None:
        function = getattr(_dll, name)
        function.argtypes = types
        function.restype = result

    _handle, _dword, _name = wintypes.HANDLE, wintypes.DWORD, wintypes.LPCWSTR
    _overlapped, _count = ctypes.POINTER(Overlapped), ctypes.POINTER(wintypes.DWORD)
    _declare("CreateFileW", _name, _dword, _dword, ctypes.c_void_p, _dword, _dword, _handle, result=_handle)
    _declare("ReOpenFile", _handle, _dword, _dword, _dword, result=_handle)
    _declare("CloseHandle", _handle)
    _declare("GetFileType", _handle, result=_dword)
    _declare("GetFileSizeEx", _handle, ctypes.POINTER(ctypes.c_int64))
    _declare("GetFileInformationByHandle", _handle, ctypes.POINTER(ByHandleFileInformation))
    _declare("GetFileInformationByHandleEx", _handle, ctypes.c_int, ctypes.c_void_p, _dword)
    _declare("ReadFile", _handle, ctypes.c_void_p, _dword, _count, _overlapped)
    _declare("WriteFile", _handle, ctypes.c_char_p, _dword, _count, _overlapped)
    _declare("FlushFileBuffers", _handle)
    _declare("SetFileInformationByHandle", _handle, ctypes.c_int, ctypes.c_void_p, _dword)
    _declare("LockFileEx", _handle, _dword, _dword, _dword, _dword, _overlapped)
    _declare("UnlockFileEx", _handle, _dword, _dword, _dword, _overlapped)
    _declare("CreateHardLinkW", _name, _name, ctypes.c_void_p)
    _declare("MoveFileExW", _name, _name, _dword)
    _declare("DeleteFileW", _name)

    def _failure(path: str | None = None) -> OSError:
        """The last error, as Python would raise it: the class and errno follow from the number."""
        code = ctypes.get_last_error()
        kind = InUse if code == _ERROR_SHARING_VIOLATION else OSError
        return kind(0, ctypes.FormatError(code).strip(), path, code)

    class Kernel32:
        """`windows.Kernel`, for real."""

        def open(self, path: str, *, writable: bool) -> Handle:
            return self._regular(self._open(path, writable, _OPEN_EXISTING, _ATTRIBUTE_NORMAL), path)

        def reopen(self, handle: Handle, *, writable: bool) -> Handle:
            access = _GENERIC_READ | (_GENERIC_WRITE if writable else 0)
            fresh = _dll.ReOpenFile(handle, access, _SHARE_ALL, 0)
            if fresh is None or fresh == _INVALID:
                raise _failure()
            return Handle(fresh)

        def create(self, path: str) -> Handle:
            return self._regular(self._open(path, True, _CREATE_NEW, _ATTRIBUTE_NORMAL | _OPEN_REPARSE_POINT), path)

        def identity_of(self, path: str) -> tuple[int, int]:
            # Without access to what is in it, so that no other opener's sharing mode can be in the way.
            handle = _dll.CreateFileW(path, 0, _SHARE_ALL, None, _OPEN_EXISTING, _BACKUP_SEMANTICS, None)
            if handle is None or handle == _INVALID:
                raise _failure(path)
            try:
                return self.identity(Handle(handle))
            finally:
                self.close(Handle(handle))

        def _open(self, path: str, writable: bool, disposition: int, attributes: int) -> Handle:
            access = _GENERIC_READ | (_GENERIC_WRITE if writable else 0)
            handle = _dll.CreateFileW(path, access, _SHARE_ALL, None, disposition, attributes, None)
            if handle is None or handle == _INVALID:
                raise _failure(path)
            return Handle(handle)

        def _regular(self, handle: Handle, path: str) -> Handle:
            """Pass the handle through if it is a file on a disk: a pipe or a device is refused before it is touched."""
            if _dll.GetFileType(handle) != _FILE_TYPE_DISK:
                self.close(handle)
                raise OSError(errno.EINVAL, "not a regular file", path)
            return handle

        def close(self, handle: Handle) -> None:
            if not _dll.CloseHandle(handle):
                raise _failure()

        def size(self, handle: Handle) -> int:
            size = ctypes.c_int64()
            if not _dll.GetFileSizeEx(handle, ctypes.byref(size)):
                raise _failure()
            return size.value

        def read(self, handle: Handle, length: int, offset: int) -> bytes:
            buffer = ctypes.create_string_buffer(length)
            count = wintypes.DWORD()
            where = Overlapped.at(offset)
            if not _dll.ReadFile(handle, buffer, length, ctypes.byref(count), ctypes.byref(where)):
                if ctypes.get_last_error() != _ERROR_HANDLE_EOF:
                    raise _failure()
                return b""
            return buffer.raw if count.value == length else buffer.raw[: count.value]

        def write(self, handle: Handle, data: bytes, offset: int) -> int:
            count = wintypes.DWORD()
            where = Overlapped.at(offset)
            if not _dll.WriteFile(handle, data, len(data), ctypes.byref(count), ctypes.byref(where)):
                raise _failure()
            return count.value

        def resize(self, handle: Handle, size: int) -> None:
            end = ctypes.c_int64(size)
            if not _dll.SetFileInformationByHandle(
                handle, _FILE_END_OF_FILE_INFO, ctypes.byref(end), ctypes.sizeof(end)
            ):
                raise _failure()

        def flush(self, handle: Handle) -> None:
            if not _dll.FlushFileBuffers(handle):
                raise _failure()

        def identity(self, handle: Handle) -> tuple[int, int]:
            wide = FileIdInfo()  # ReFS has identifiers of 128 bits
            if _dll.GetFileInformationByHandleEx(handle, _FILE_ID_INFO, ctypes.byref(wide), ctypes.sizeof(wide)):
                return wide.identity()
            if ctypes.get_last_error() not in _UNKNOWN_HERE:
                raise _failure()
            info = ByHandleFileInformation()
            if not _dll.GetFileInformationByHandle(handle, ctypes.byref(info)):
                raise _failure()
            return info.dwVolumeSerialNumber, info.nFileIndexHigh << 32 | info.nFileIndexLow

        def lock(self, handle: Handle, offset: int, length: int, *, exclusive: bool) -> bool:
            flags = _FAIL_IMMEDIATELY | (_EXCLUSIVE if exclusive else 0)
            where = Overlapped.at(offset)
            if _dll.LockFileEx(handle, flags, 0, length & 0xFFFFFFFF, length >> 32, ctypes.byref(where)):
                return True
            if ctypes.get_last_error() in (_ERROR_LOCK_VIOLATION, _ERROR_IO_PENDING):
                return False
            raise _failure()

        def unlock(self, handle: Handle, offset: int, length: int) -> None:
            where = Overlapped.at(offset)
            if not _dll.UnlockFileEx(handle, 0, length & 0xFFFFFFFF, length >> 32, ctypes.byref(where)):
                raise _failure()

        def link(self, source: str, target: str) -> None:
            if not _dll.CreateHardLinkW(target, source, None):
                raise _failure(target)

        def replace(self, source: str, target: str) -> None:
            if not _dll.MoveFileExW(source, target, _REPLACE_EXISTING | _WRITE_THROUGH):
                raise _failure(target)

        def remove(self, path: str) -> None:
            if not _dll.DeleteFileW(path):
                raise _failure(path)

        def flush_directory(self, path: str) -> bool:
            try:
                handle = self._open(os.path.abspath(path), True, _OPEN_EXISTING, _BACKUP_SEMANTICS)
            except OSError as exc:
                if isinstance(exc, PermissionError) or exc.winerror in _UNKNOWN_HERE:
                    return False
                raise
            try:
                if _dll.FlushFileBuffers(handle):
                    return True
                if ctypes.get_last_error() in (_ERROR_ACCESS_DENIED, *_UNKNOWN_HERE):
                    return False
                raise _failure(path)
            finally:
                self.close(handle)

    class FileVolume(WindowsVolume):
        """The file system of this machine."""

        def __init__(self) -> None:
            super().__init__(Kernel32())
