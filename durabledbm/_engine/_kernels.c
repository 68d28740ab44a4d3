/* Kernels: the inner loops of `node`, `page` and `tree` in C.
 *
 * Each function `k_NAME` is the twin of the Python function NAME that carries the decorator `twin` (see kernels.py).
 * That function is the reference: for whatever the engine writes, both return the same. On a forged run a kernel may
 * raise ValueError where its twin raises something else, or returns nonsense; it never returns what the twin refuses.
 *
 * Functions of their arguments: no I/O, no policy (limits are handed in), no state but what the module object holds.
 *
 * Bounds. A checksum does not keep out a file that was made to hurt, so nothing that stands in a run is believed: a
 * number from a run is compared with the run's size before it is used as a place. Numbers in a run that lead to places
 * have 32 bits at most, and places are reckoned in 64, so they cannot overflow.
 *
 * Ownership. Arguments are borrowed from the caller, and so are pointers into them; bytes never change, so these stay
 * right as long as the caller's reference does. A kernel that calls Python code keeps references of its own to whatever
 * it uses afterwards.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* kernels.py uses only a module with its own number: count both up if an interface changes */

#ifndef SOURCE
#define SOURCE 0 /* half the CRC-32 of this file, which .ci/kernels.py hands in: a test tells when the build is older */
#endif

/* The layout of runs, as docs/format.md has it; a test compares these with `page` and `node`. */
enum {
    HEADER = 32, CRC = 4, REF = 16, NARROW_MAX = 65536, LEAF = 1, BRANCH = 2, HAS_OVERFLOW = 1,
    TREE_AT = 2, COUNT_AT = 4, PAGE_AT = 8, TXID_AT = 16, PAGES_AT = 24, PAYLOAD_AT = 28, /* in a header */
    NARROW = 2, WIDE = 4, /* bytes of an offset */
    LEAF_OVERHEAD = 1 + 2 * NARROW, /* a fingerprint and two offsets */
};

_Static_assert(sizeof(Py_ssize_t) == 8, "places are reckoned in 64 bits");

typedef const uint8_t *bytes_t;

typedef struct {
    PyObject *overflow; /* the class node.Overflow */
    PyObject *of, *leaf, *child; /* names of methods */
} State;

static State *state_of(PyObject *module) { return PyModule_GetState(module); }

static inline uint32_t get16(bytes_t p) { return p[0] | (uint32_t)p[1] << 8; }
static inline uint32_t get32(bytes_t p) { return get16(p) | get16(p + 2) << 16; }
static inline uint64_t get64(bytes_t p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }
static inline void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, v); put16(p + 2, v >> 16); }
static inline void put64(uint8_t *p, uint64_t v) { put32(p, (uint32_t)v); put32(p + 4, (uint32_t)(v >> 32)); }

static PyObject *refuse(const char *why) { PyErr_SetString(PyExc_ValueError, why); return NULL; }

/* Not Py_RETURN_NONE: in the headers of 3.12 and 3.13 it counts no reference, and older interpreters, for which a build
 * by these is made as well, count them. */
static PyObject *none(void) { Py_IncRef(Py_None); return Py_None; }

static const char *const NONSENSE = "the offsets in the page make no sense";

/* The bytes of an object that must be bytes; -1 with an exception if it is not. In the limited API each access is a
 * call, so this is one call for both. */
static inline int bytes_of(PyObject *object, bytes_t *data, Py_ssize_t *size)
{
    return PyBytes_AsStringAndSize(object, (char **)data, size);
}

static inline PyObject *new_bytes(bytes_t data, Py_ssize_t size)
{
    return PyBytes_FromStringAndSize((const char *)data, size);
}

/* -- checksums -----------------------------------------------------------------------------------------------------
 *
 * A CRC is linear: the entry of a table for a byte is the sum of those for its bits. So the compiler makes the tables,
 * from eight numbers each. LANE0 to LANE3: what LANE zeros make of byte 0 to 3 of a CRC32C. ZIP: the CRC-32 of zlib.
 */
enum { LANE = 1360 }; /* three of these are a page of 4096 bytes but for 16 */

#define BIT(i, n, c) ((i) >> (n) & 1 ? (c) : 0u)
#define ENTRY(i, a, b, c, d, e, f, g, h) \
    (BIT(i, 0, a) ^ BIT(i, 1, b) ^ BIT(i, 2, c) ^ BIT(i, 3, d) \
     ^ BIT(i, 4, e) ^ BIT(i, 5, f) ^ BIT(i, 6, g) ^ BIT(i, 7, h))
#define LANE0(i) \
    ENTRY(i, 0x79113270, 0xf22264e0, 0xe1a8bf31, 0xc6bd0893, 0x889667d7, 0x14c0b95f, 0x298172be, 0x5302e57c)
#define LANE1(i) \
    ENTRY(i, 0xa605caf8, 0x49e7e301, 0x93cfc602, 0x2273faf5, 0x44e7f5ea, 0x89cfebd4, 0x1673a159, 0x2ce742b2)
#define LANE2(i) \
    ENTRY(i, 0x59ce8564, 0xb39d0ac8, 0x62d66361, 0xc5acc6c2, 0x8eb5fb75, 0x1887801b, 0x310f0036, 0x621e006c)
#define LANE3(i) \
    ENTRY(i, 0xc43c00d8, 0x8d947741, 0x1ec49873, 0x3d8930e6, 0x7b1261cc, 0xf624c398, 0xe9a5f1c1, 0xd6a79573)
#define ZIP(i) \
    ENTRY(i, 0x77073096, 0xee0e612c, 0x076dc419, 0x0edb8832, 0x1db71064, 0x3b6e20c8, 0x76dc4190, 0xedb88320)
#define FOUR(T, i) T(i), T(i + 1), T(i + 2), T(i + 3)
#define SIXTEEN(T, i) FOUR(T, i), FOUR(T, i + 4), FOUR(T, i + 8), FOUR(T, i + 12)
#define SIXTY_FOUR(T, i) SIXTEEN(T, i), SIXTEEN(T, i + 16), SIXTEEN(T, i + 32), SIXTEEN(T, i + 48)
#define TABLE(T) {SIXTY_FOUR(T, 0), SIXTY_FOUR(T, 64), SIXTY_FOUR(T, 128), SIXTY_FOUR(T, 192)}

static const uint32_t lane_table[4][256] = {TABLE(LANE0), TABLE(LANE1), TABLE(LANE2), TABLE(LANE3)};
static const uint32_t zip_table[256] = TABLE(ZIP);

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <nmmintrin.h>
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define STEP64(c, v) _mm_crc32_u64(c, v)
#define STEP8(c, v) _mm_crc32_u8((uint32_t)(c), v)
static int has_instruction(void) { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define WITH_INSTRUCTION
#define STEP64(c, v) __crc32cd((uint32_t)(c), v)
#define STEP8(c, v) __crc32cb((uint32_t)(c), v)
static int has_instruction(void) { return 1; }
#else
#error "no instruction for CRC32C: Python is faster"
#endif

static inline uint32_t past_lane(uint64_t c)
{
    return lane_table[0][c & 255] ^ lane_table[1][c >> 8 & 255]
        ^ lane_table[2][c >> 16 & 255] ^ lane_table[3][c >> 24 & 255];
}

/* The checksum of n bytes after those of the checksum `value`. The instruction takes three cycles, and one can be begun
 * in each: so three lanes go side by side. */
WITH_INSTRUCTION static uint32_t crc32c(uint32_t value, bytes_t p, size_t n)
{
    uint64_t c = ~value;
    for (; n >= 3 * LANE; p += 3 * LANE, n -= 3 * LANE) {
        uint64_t c1 = 0, c2 = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            c = STEP64(c, get64(p + i));
            c1 = STEP64(c1, get64(p + LANE + i));
            c2 = STEP64(c2, get64(p + 2 * LANE + i));
        }
        c = past_lane(c) ^ c1;
        c = past_lane(c) ^ c2;
    }
    for (; n >= 8; p += 8, n -= 8) c = STEP64(c, get64(p));
    while (n--) c = STEP8(c, *p++);
    return ~(uint32_t)c;
}

/* crc32c(data, value): for tests of this file, and of the module when it is imported. Its twin is the package crc32c,
 * which also takes what is not bytes. */
static PyObject *k_crc32c(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    bytes_t data;
    Py_ssize_t size;
    if (n != 2) return refuse("crc32c(data, value)");
    if (bytes_of(args[0], &data, &size)) return NULL;
    unsigned long value = PyLong_AsUnsignedLongMask(args[1]);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLong(crc32c((uint32_t)value, data, (size_t)size));
}

/* What stands in a leaf for each key: the last byte of zlib.crc32(key). */
static inline uint8_t fingerprint(bytes_t p, Py_ssize_t n)
{
    uint32_t c = ~0u;
    while (n--) c = c >> 8 ^ zip_table[(c ^ *p++) & 255];
    return (uint8_t)~c;
}

/* -- runs (page.py) ------------------------------------------------------------------------------------------------ */

/* matches(run, ref, kind). Bounds: nothing is read beyond a header and a CRC, which the size is compared with. */
static PyObject *k_matches(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    bytes_t run, ref;
    Py_ssize_t size, ref_size;
    if (n != 3) return refuse("matches(run, ref, kind)");
    if (bytes_of(args[0], &run, &size) || bytes_of(args[1], &ref, &ref_size)) return NULL;
    long kind = PyLong_AsLong(args[2]);
    if (kind == -1 && PyErr_Occurred()) return NULL;
    if (ref_size != REF) return refuse("a ref of another size than refs have");
    return PyBool_FromLong(
        size >= HEADER + CRC && run[0] == kind && !memcmp(run + PAGE_AT, ref, 8) && !memcmp(run + PAGES_AT, ref + 8, 4)
        && !memcmp(run + size - CRC, ref + 12, CRC) && crc32c(0, run, (size_t)size - CRC) == get32(ref + 12));
}

/* seal(kind, flags, entry_count, page_id, txid, page_size, *payload, tree=0). The run is written once, in its place. */
static PyObject *k_seal(PyObject *module, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    unsigned long long numbers[7] = {0};
    static const unsigned long long most[7] = {255, 255, UINT32_MAX, UINT64_MAX, UINT64_MAX, INT32_MAX, UINT16_MAX};
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    if (n < 6 || named > 1 || (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "tree")))
        return refuse("seal(kind, flags, entry_count, page_id, txid, page_size, *payload, tree=0)");
    for (int i = 0; i < 6 + named; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(args[i < 6 ? i : n]); /* named arguments are behind the others */
        if (numbers[i] == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
        if (numbers[i] > most[i]) return refuse("a number larger than its place in a header");
    }
    uint64_t page_size = numbers[5], payload = 0;
    if (page_size < HEADER + CRC) return refuse("a page smaller than a header");
    for (Py_ssize_t i = 6; i < n; i++) {
        bytes_t part;
        Py_ssize_t size;
        if (bytes_of(args[i], &part, &size)) return NULL;
        payload += (uint64_t)size;
    }
    uint64_t page_count = (HEADER + payload + CRC + page_size - 1) / page_size, size = page_count * page_size;
    if (size > UINT32_MAX) return refuse("a run too long for a header");
    PyObject *run = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!run) return NULL;
    uint8_t *data = (uint8_t *)PyBytes_AsString(run), *to = data + HEADER; /* nobody else has seen the run yet */
    data[0] = (uint8_t)numbers[0];
    data[1] = (uint8_t)numbers[1];
    put16(data + TREE_AT, (uint32_t)numbers[6]);
    put32(data + COUNT_AT, (uint32_t)numbers[2]);
    put64(data + PAGE_AT, numbers[3]);
    put64(data + TXID_AT, numbers[4]);
    put32(data + PAGES_AT, (uint32_t)page_count);
    put32(data + PAYLOAD_AT, (uint32_t)payload);
    for (Py_ssize_t i = 6; i < n; i++) { /* the same parts as above: neither they nor the array of arguments change */
        bytes_t part;
        Py_ssize_t part_size;
        if (bytes_of(args[i], &part, &part_size)) { Py_DECREF(run); return NULL; }
        memcpy(to, part, (size_t)part_size);
        to += part_size;
    }
    memset(to, 0, (size_t)(size - HEADER - CRC - payload));
    put32(data + size - CRC, crc32c(0, data, (size_t)size - CRC));
    return run;
}

/* -- leaves (node.py) ---------------------------------------------------------------------------------------------- */

/* The parts of a leaf. `table` has 2 * count + 1 offsets, counted from `cells`; `room` is from there to the end. */
typedef struct {
    bytes_t data, table, cells;
    Py_ssize_t count, room;
    int wide, kinds;
} Leaf;

static inline uint32_t offset(const Leaf *leaf, Py_ssize_t i)
{
    return leaf->wide ? get32(leaf->table + WIDE * i) : get16(leaf->table + NARROW * i);
}

/* Find the parts. All but the cells are inside the run then; offsets were not looked at. */
static int open_leaf(PyObject *run, Leaf *leaf)
{
    Py_ssize_t size;
    if (bytes_of(run, &leaf->data, &size)) return -1;
    if (size < HEADER + CRC) { refuse("a leaf shorter than a header"); return -1; }
    leaf->count = get32(leaf->data + COUNT_AT);
    leaf->wide = size > NARROW_MAX;
    leaf->kinds = leaf->data[1] & HAS_OVERFLOW;
    int64_t start = HEADER + (int64_t)leaf->count + (leaf->wide ? WIDE : NARROW) * (2 * (int64_t)leaf->count + 1);
    if (leaf->kinds) start += leaf->count;
    if (start > size) { refuse("an entry count larger than the page"); return -1; }
    leaf->table = leaf->data + HEADER + leaf->count;
    leaf->cells = leaf->data + start;
    leaf->room = size - (Py_ssize_t)start;
    return 0;
}

/* Check all offsets of a leaf: they ascend from 0 and end inside the run. */
static int check_offsets(const Leaf *leaf)
{
    uint32_t last = offset(leaf, 0), next;
    if (last) { refuse(NONSENSE); return -1; }
    for (Py_ssize_t i = 1; i <= 2 * leaf->count; i++, last = next)
        if ((next = offset(leaf, i)) < last) { refuse(NONSENSE); return -1; }
    if ((Py_ssize_t)last > leaf->room) { refuse(NONSENSE); return -1; }
    return 0;
}

/* The value of an entry whose offsets were checked: bytes, or `Overflow.of` them. */
static PyObject *value_at(const State *state, const Leaf *leaf, Py_ssize_t i, uint32_t from, uint32_t to)
{
    PyObject *value = new_bytes(leaf->cells + from, to - from);
    if (!value || !leaf->kinds || !leaf->cells[i - leaf->count]) return value;
    PyObject *large = PyObject_CallMethodObjArgs(state->overflow, state->of, value, NULL);
    Py_DECREF(value);
    return large;
}

/* The value, or None. Only offsets of entries with the key's fingerprint are looked at, and each is checked first. */
static PyObject *search(const State *state, PyObject *run, PyObject *key)
{
    Leaf leaf;
    bytes_t wanted;
    Py_ssize_t size;
    if (open_leaf(run, &leaf) || bytes_of(key, &wanted, &size)) return NULL;
    bytes_t first = leaf.data + HEADER, at = first, end = first + leaf.count;
    uint8_t print = fingerprint(wanted, size);
    for (; at < end && (at = memchr(at, print, (size_t)(end - at))); at++) {
        Py_ssize_t i = at - first;
        uint32_t a = offset(&leaf, 2 * i), b = offset(&leaf, 2 * i + 1), c = offset(&leaf, 2 * i + 2);
        if (b < a || (Py_ssize_t)(b - a) != size || (Py_ssize_t)b > leaf.room) continue;
        if (memcmp(leaf.cells + a, wanted, b - a)) continue;
        if (c < b || (Py_ssize_t)c > leaf.room) return refuse(NONSENSE);
        return value_at(state, &leaf, i, b, c);
    }
    return none();
}

static PyObject *k_find_value(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    return n == 2 ? search(state_of(module), args[0], args[1]) : refuse("find_value(leaf, key)");
}

/* The keys, or a tuple of keys and values. */
static PyObject *decoded(PyObject *module, PyObject *run, int with_values)
{
    Leaf leaf;
    if (open_leaf(run, &leaf) || check_offsets(&leaf)) return NULL;
    PyObject *keys = PyList_New(leaf.count), *values = with_values ? PyList_New(leaf.count) : NULL, *both = NULL;
    if (!keys || (with_values && !values)) goto done;
    uint32_t a = 0;
    for (Py_ssize_t i = 0; i < leaf.count; i++) {
        uint32_t b = offset(&leaf, 2 * i + 1), c = offset(&leaf, 2 * i + 2);
        PyObject *key = new_bytes(leaf.cells + a, b - a);
        if (!key) goto done;
        PyList_SetItem(keys, i, key); /* takes over the reference, and cannot fail: the list has the place */
        if (with_values) {
            PyObject *value = value_at(state_of(module), &leaf, i, b, c);
            if (!value) goto done;
            PyList_SetItem(values, i, value);
        }
        a = c;
    }
    if (!with_values) return keys;
    both = PyTuple_Pack(2, keys, values);
done:
    Py_XDECREF(keys);
    Py_XDECREF(values);
    return both;
}

static PyObject *k_decode_leaf(PyObject *module, PyObject *run) { return decoded(module, run, 1); }
static PyObject *k_leaf_keys(PyObject *module, PyObject *run) { return decoded(module, run, 0); }

/* Entry i of two lists: its key and its value, borrowed from the lists, which must not change meanwhile. */
typedef struct {
    bytes_t key, value;
    Py_ssize_t key_size, value_size;
    int large;
} Entry;

static int entry_of(const State *state, PyObject *keys, PyObject *values, Py_ssize_t i, Entry *entry)
{
    PyObject *key = PyList_GetItem(keys, i), *value = PyList_GetItem(values, i); /* an exception if there is none */
    if (!key || bytes_of(key, &entry->key, &entry->key_size)) return -1;
    if (!value || bytes_of(value, &entry->value, &entry->value_size)) return -1;
    entry->large = (PyObject *)Py_TYPE(value) == state->overflow;
    return 0;
}

/* leaf_ends(keys, values). */
static PyObject *k_leaf_ends(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2 || !PyList_Check(args[0]) || !PyList_Check(args[1])) return refuse("leaf_ends(keys, values), two lists");
    const State *state = state_of(module);
    Py_ssize_t count = PyList_Size(args[0]);
    int kinds = 0;
    Entry entry;
    int64_t end = 0, *ends = PyMem_Malloc(sizeof(int64_t) * ((size_t)count + 1));
    if (!ends) return PyErr_NoMemory();
    PyObject *result = NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (entry_of(state, args[0], args[1], i, &entry)) goto done;
        kinds |= entry.large;
        ends[i] = end += entry.key_size + entry.value_size;
    }
    if (!(result = PyList_New(count))) goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *number = PyLong_FromLongLong(ends[i] + (LEAF_OVERHEAD + kinds) * (i + 1));
        if (!number) { Py_DECREF(result); result = NULL; goto done; }
        PyList_SetItem(result, i, number);
    }
done:
    PyMem_Free(ends);
    return result;
}

/* encode_leaf(keys, values, page_size): two passes, one for the size and one that writes. */
static PyObject *k_encode_leaf(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || !PyList_Check(args[0]) || !PyList_Check(args[1]))
        return refuse("encode_leaf(keys, values, page_size)");
    const State *state = state_of(module);
    PyObject *keys = args[0], *values = args[1];
    long page_size = PyLong_AsLong(args[2]);
    if (page_size == -1 && PyErr_Occurred()) return NULL;
    if (page_size < HEADER + CRC || page_size > INT32_MAX) return refuse("no page size");
    int64_t count = PyList_Size(keys), body = 0;
    int kinds = 0;
    Entry entry;
    if (PyList_Size(values) != count) return refuse("as many values as keys are needed");
    for (Py_ssize_t i = 0; i < count; i++) {
        if (entry_of(state, keys, values, i, &entry)) return NULL;
        kinds |= entry.large;
        body += entry.key_size + entry.value_size;
    }
    int64_t payload = count + NARROW * (2 * count + 1) + (kinds ? count : 0) + body;
    int wide = (HEADER + payload + CRC + page_size - 1) / page_size * page_size > NARROW_MAX;
    if (wide) payload += (WIDE - NARROW) * (2 * count + 1);
    if (payload > UINT32_MAX) { PyErr_SetString(PyExc_OverflowError, "a leaf too large"); return NULL; }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)payload);
    if (!bytes) return NULL;
    uint8_t *print = (uint8_t *)PyBytes_AsString(bytes), *table = print + count;
    uint8_t *kind = table + (wide ? WIDE : NARROW) * (2 * count + 1), *cell = kind + (kinds ? count : 0), *cells = cell;
    for (Py_ssize_t i = 0; i < count; i++) { /* no Python code has run since: the sizes are the same */
        if (entry_of(state, keys, values, i, &entry)) { Py_DECREF(bytes); return NULL; }
        uint32_t a = (uint32_t)(cell - cells), b = a + (uint32_t)entry.key_size;
        if (wide) { put32(table, a); put32(table + WIDE, b); table += 2 * WIDE; }
        else { put16(table, a); put16(table + NARROW, b); table += 2 * NARROW; }
        *print++ = fingerprint(entry.key, entry.key_size);
        if (kinds) *kind++ = (uint8_t)entry.large;
        memcpy(cell, entry.key, (size_t)entry.key_size);
        memcpy(cell + entry.key_size, entry.value, (size_t)entry.value_size);
        cell += entry.key_size + entry.value_size;
    }
    if (wide) put32(table, (uint32_t)body); else put16(table, (uint32_t)body);
    return Py_BuildValue("(iN)", kinds ? HAS_OVERFLOW : 0, bytes);
}

static inline int less(bytes_t a, Py_ssize_t m, bytes_t b, Py_ssize_t n)
{
    int c = memcmp(a, b, (size_t)(m < n ? m : n));
    return c < 0 || (c == 0 && m < n);
}

/* -- editing a leaf (node.py) -------------------------------------------------------------------------------------- */

/* A change at entry `at`: of that entry if it is `there`, else in front of it. A value of NULL deletes. */
typedef struct {
    Py_ssize_t at, key_size, value_size;
    bytes_t key, value;
    int there;
    PyObject *owner; /* keeps the value */
} Edit;

/* Where the key belongs among the first `high` entries; the offsets were checked. */
static void locate(const Leaf *leaf, Py_ssize_t high, Edit *edit)
{
    Py_ssize_t low = 0;
    edit->there = 0;
    while (low < high) {
        Py_ssize_t middle = (low + high) >> 1;
        uint32_t a = offset(leaf, 2 * middle), b = offset(leaf, 2 * middle + 1);
        if (less(leaf->cells + a, b - a, edit->key, edit->key_size)) {
            low = middle + 1;
        } else {
            high = middle;
            edit->there = (Py_ssize_t)(b - a) == edit->key_size && !memcmp(leaf->cells + a, edit->key, b - a);
        }
    }
    edit->at = low;
}

/* The payload with `done` edits made, the last entry's first: so edits[done - 1] is the first one in the leaf. What is
 * between them is copied. `count` and `size` are those of the result, which was reckoned from the same edits. */
static PyObject *spliced(const Leaf *leaf, const Edit *edits, Py_ssize_t done, Py_ssize_t count, Py_ssize_t size)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, size);
    if (!payload) return NULL;
    uint8_t *print = (uint8_t *)PyBytes_AsString(payload), *table = print + count;
    uint8_t *cells = table + NARROW * (2 * count + 1);
    uint32_t from = 0, to = 0; /* places among the cells, of the old leaf and of the new one */
    Py_ssize_t at = 0;
    for (Py_ssize_t i = done; i >= 0; i--) {
        const Edit *edit = i ? &edits[i - 1] : NULL;
        Py_ssize_t stop = edit ? edit->at : leaf->count;
        uint32_t border = offset(leaf, 2 * stop);
        memcpy(print, leaf->data + HEADER + at, (size_t)(stop - at));
        print += stop - at;
        for (Py_ssize_t k = 2 * at; k < 2 * stop; k++, table += NARROW) put16(table, offset(leaf, k) - from + to);
        memcpy(cells + to, leaf->cells + from, border - from);
        to += border - from;
        from = border;
        at = stop;
        if (!edit) break;
        if (edit->there) from = offset(leaf, 2 * ++at);
        if (!edit->value) continue;
        *print++ = edit->there ? leaf->data[HEADER + edit->at] : fingerprint(edit->key, edit->key_size);
        put16(table, to);
        put16(table + NARROW, to + (uint32_t)edit->key_size);
        table += 2 * NARROW;
        memcpy(cells + to, edit->key, (size_t)edit->key_size);
        memcpy(cells + to + edit->key_size, edit->value, (size_t)edit->value_size);
        to += (uint32_t)(edit->key_size + edit->value_size);
    }
    put16(table, to);
    return payload;
}

/* The changes of `keys`, from the last to the first, into `edits`. Returns how many are to be made; -1 with an
 * exception; -2 where the twin returns None. `count` and `body` (bytes of cells) become those of the new leaf. */
static Py_ssize_t gather(const Leaf *leaf, PyObject *changes, PyObject *keys, const long *limits, Edit *edits,
                         Py_ssize_t *count, Py_ssize_t *body)
{
    Py_ssize_t done = 0, high = leaf->count;
    for (Py_ssize_t i = PyList_Size(keys); i--;) {
        Edit *edit = &edits[done];
        PyObject *key = PyList_GetItem(keys, i);
        if (!key || bytes_of(key, &edit->key, &edit->key_size)) return -1;
        if (!(edit->owner = PyObject_GetItem(changes, key))) return -1;
        locate(leaf, high, edit);
        high = edit->at;
        uint32_t a = offset(leaf, 2 * high), b = edit->there ? offset(leaf, 2 * high + 1) : a;
        uint32_t c = edit->there ? offset(leaf, 2 * high + 2) : a;
        edit->value = NULL;
        done++; /* from here on the caller drops the reference */
        if (edit->owner == Py_None) {
            if (!edit->there) { Py_CLEAR(edit->owner); done--; continue; }
            *body -= c - a;
            --*count;
            continue;
        }
        if (!PyBytes_CheckExact(edit->owner)) return -2;
        if (bytes_of(edit->owner, &edit->value, &edit->value_size)) return -1;
        if (edit->value_size > limits[2]) return -2;
        if (edit->there) {
            *body += edit->value_size - (Py_ssize_t)(c - b);
        } else {
            *body += edit->key_size + edit->value_size;
            ++*count;
            if (*body > limits[1]) return -2;
        }
    }
    return done;
}

/* edit_leaf(leaf, changes, keys, limits). `changes` may be any mapping: its code runs only while `keys`, a list of the
 * caller's own, and `leaf` are held by the caller, and values are held here. */
static PyObject *k_edit_leaf(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    long limits[3];
    Leaf leaf;
    if (n != 4 || !PyList_Check(args[2]) || !PyTuple_Check(args[3]) || PyTuple_Size(args[3]) != 3)
        return refuse("edit_leaf(leaf, changes, keys, limits)");
    for (int i = 0; i < 3; i++) {
        limits[i] = PyLong_AsLong(PyTuple_GetItem(args[3], i));
        if (limits[i] == -1 && PyErr_Occurred()) return NULL;
        if (limits[i] < 0) return refuse("a limit below 0");
    }
    if (limits[1] > NARROW_MAX) return refuse("a limit beyond the reach of an offset");
    if (open_leaf(args[0], &leaf)) return NULL;
    if (leaf.data[1] || leaf.cells - leaf.data + leaf.room > NARROW_MAX / 2) return none();
    if (check_offsets(&leaf)) return NULL;
    Py_ssize_t payload = get32(leaf.data + PAYLOAD_AT), body = offset(&leaf, 2 * leaf.count), count = leaf.count;
    if (payload != leaf.cells - leaf.data - HEADER + body) return refuse(NONSENSE);
    Py_ssize_t key_count = PyList_Size(args[2]);
    Edit *edits = PyMem_Calloc((size_t)key_count + 1, sizeof(Edit));
    if (!edits) return PyErr_NoMemory();
    PyObject *result = NULL, *bytes;
    Py_ssize_t done = gather(&leaf, args[1], args[2], limits, edits, &count, &body);
    Py_ssize_t size = count + NARROW * (2 * count + 1) + body;
    if (done == -2 || (done >= 0 && (size > limits[1] || size < (limits[0] < payload ? limits[0] : payload)))) {
        result = none();
    } else if (done >= 0 && (bytes = spliced(&leaf, edits, done, count, size))) {
        result = Py_BuildValue("(nn(N))", count, count - leaf.count, bytes);
    }
    for (Py_ssize_t i = 0; i < key_count; i++) Py_XDECREF(edits[i].owner);
    PyMem_Free(edits);
    return result;
}

/* -- the descent (tree.py) ----------------------------------------------------------------------------------------- */

/* The ref of the child that the key belongs to in a sealed branch. Bounds: where the refs and the table of offsets end
 * is compared with the size of the run at first, where a separator ends when it is looked at. */
static PyObject *child_of(bytes_t run, Py_ssize_t size, PyObject *key)
{
    bytes_t wanted;
    Py_ssize_t key_size;
    if (bytes_of(key, &wanted, &key_size)) return NULL;
    if (size < HEADER + CRC) return refuse("a branch shorter than a header");
    int64_t count = get32(run + COUNT_AT), width = size > NARROW_MAX ? WIDE : NARROW;
    int64_t body = HEADER + count * (REF + width), low = 0, high = count - 1;
    if (!count || body > size) return refuse("a count of children that cannot be");
    bytes_t table = run + HEADER + count * REF;
    while (low < high) {
        int64_t middle = (low + high) >> 1;
        bytes_t p = table + middle * width;
        int64_t a = width == WIDE ? get32(p) : get16(p), b = width == WIDE ? get32(p + WIDE) : get16(p + NARROW);
        if (b < a || body + b > size) return refuse(NONSENSE);
        if (less(wanted, key_size, run + body + a, (Py_ssize_t)(b - a))) high = middle; else low = middle + 1;
    }
    return new_bytes(run + HEADER + low * REF, REF);
}

static PyObject *k_find_child(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    bytes_t run;
    Py_ssize_t size;
    if (n != 2) return refuse("find_child(run, key)");
    return bytes_of(args[0], &run, &size) ? NULL : child_of(run, size, args[1]);
}

/* The same in a branch, sealed or decoded, that may be something else; a new reference. */
static PyObject *child_in(PyObject *branch, PyObject *key)
{
    bytes_t run;
    Py_ssize_t run_size;
    if (!PyTuple_Check(branch)) {
        if (bytes_of(branch, &run, &run_size)) return NULL;
        return run_size && run[0] == BRANCH ? child_of(run, run_size, key) : refuse("a leaf where a branch should be");
    }
    PyObject *separators = PyTuple_GetItem(branch, 0), *refs = PyTuple_GetItem(branch, 1);
    bytes_t wanted, other;
    Py_ssize_t size, other_size;
    if (!separators || !refs || bytes_of(key, &wanted, &size)) return NULL;
    Py_ssize_t low = 0, high = PyList_Size(separators);
    if (high < 0) return NULL;
    while (low < high) {
        Py_ssize_t middle = (low + high) >> 1;
        PyObject *separator = PyList_GetItem(separators, middle);
        if (!separator || bytes_of(separator, &other, &other_size)) return NULL;
        if (less(wanted, size, other, other_size)) high = middle; else low = middle + 1;
    }
    PyObject *ref = PyList_GetItem(refs, low);
    Py_XINCREF(ref);
    return ref;
}

/* The value in a leaf that may be something else. */
static PyObject *found_in(const State *state, PyObject *leaf, PyObject *key)
{
    bytes_t run;
    Py_ssize_t size;
    if (bytes_of(leaf, &run, &size)) return NULL;
    return size && run[0] == LEAF ? search(state, leaf, key) : refuse("a branch where a leaf should be");
}

/* find(young, pager, ref, depth, key). Nodes that are not in `young` are the business of pager.child and pager.leaf. */
static PyObject *k_find(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    const State *state = state_of(module);
    if (n != 5 || !PyDict_Check(args[0])) return refuse("find(young, pager, ref, depth, key)");
    PyObject *young = args[0], *pager = args[1], *ref = args[2], *key = args[4];
    long depth = PyLong_AsLong(args[3]);
    if (depth == -1 && PyErr_Occurred()) return NULL;
    Py_INCREF(ref);
    for (;; depth--) {
        PyObject *node = PyDict_GetItemWithError(young, ref), *next;
        Py_XINCREF(node); /* from here on `young` may change: other threads run while a page is read */
        if (!node && PyErr_Occurred()) { Py_DECREF(ref); return NULL; }
        if (depth > 1) {
            next = node ? child_in(node, key) : PyObject_CallMethodObjArgs(pager, state->child, ref, key, NULL);
        } else {
            if (!node) node = PyObject_CallMethodObjArgs(pager, state->leaf, ref, NULL);
            next = node ? found_in(state, node, key) : NULL;
        }
        Py_XDECREF(node);
        Py_DECREF(ref);
        if (!next || depth <= 1) return next;
        ref = next;
    }
}

/* -- the module ---------------------------------------------------------------------------------------------------- */

/* use(Overflow): the class that stands for large values. Once, after the import. */
static PyObject *k_use(PyObject *module, PyObject *overflow)
{
    State *state = state_of(module);
    PyObject *old = state->overflow;
    Py_INCREF(overflow);
    state->overflow = overflow;
    Py_XDECREF(old);
    return none();
}

static int begin(PyObject *module)
{
    State *state = state_of(module);
    if (!has_instruction()) { PyErr_SetString(PyExc_ImportError, "no instruction for CRC32C"); return -1; }
    Py_INCREF(Py_None); /* until `use`: no value is of this type */
    state->overflow = Py_None;
    if (!(state->of = PyUnicode_InternFromString("of")) || !(state->leaf = PyUnicode_InternFromString("leaf"))
        || !(state->child = PyUnicode_InternFromString("child")))
        return -1;
    static const struct { const char *name; long value; } numbers[] = {
        {"INTERFACE", INTERFACE}, {"HEADER", HEADER}, {"CRC", CRC}, {"REF", REF},
        {"NARROW_MAX", NARROW_MAX}, {"LEAF", LEAF}, {"BRANCH", BRANCH}, {"HAS_OVERFLOW", HAS_OVERFLOW},
        {"LEAF_OVERHEAD", LEAF_OVERHEAD}, {"SOURCE", SOURCE},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value)) return -1;
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = state_of(module);
    if (state) Py_VISIT(state->overflow);
    return 0;
}

static int clear(PyObject *module)
{
    State *state = state_of(module);
    if (!state) return 0;
    Py_CLEAR(state->overflow);
    Py_CLEAR(state->of);
    Py_CLEAR(state->leaf);
    Py_CLEAR(state->child);
    return 0;
}

static void release(void *module) { clear(module); }

#define FAST(name) {#name, (PyCFunction)(void (*)(void))k_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    {"seal", (PyCFunction)(void (*)(void))k_seal, METH_FASTCALL | METH_KEYWORDS, NULL},
    FAST(crc32c), FAST(matches), FAST(find_value), FAST(find_child), FAST(leaf_ends), FAST(encode_leaf),
    FAST(edit_leaf), FAST(find), {"decode_leaf", k_decode_leaf, METH_O, NULL},
    {"leaf_keys", k_leaf_keys, METH_O, NULL}, {"use", k_use, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)begin}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, sizeof(State), methods, slots, traverse, clear, release,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
