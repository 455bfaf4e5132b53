/* The fast path's commands in C; `scsi.cdb.plain` says what they are, and a test holds the two together. */
#ifndef TCMU_RETRY_PLAIN_H
#define TCMU_RETRY_PLAIN_H

#include <stdbool.h>
#include <stdint.h>

enum plain_op { PLAIN_NOT = 0, PLAIN_READ, PLAIN_WRITE, PLAIN_FLUSH };

struct plain_disk {
    uint32_t block_size;
    uint64_t blocks;
    uint32_t maximum; /* bytes of one command's data */
    bool writable;
};

struct plain_request {
    enum plain_op op;
    bool fua;
    uint64_t offset, length; /* bytes of the medium */
};

/* PLAIN_NOT: somebody else must see it. */
enum plain_op plain_read(const uint8_t *cdb, uint32_t cdb_length, uint64_t data_length, const struct plain_disk *disk,
                         struct plain_request *request);

#endif
