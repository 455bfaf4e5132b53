#include "plain.h"

enum { FUA = 0x08, DPO = 0x10, IMMED = 0x02 };

static uint64_t big(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | *at++;
    return value;
}

enum plain_op plain_read(const uint8_t *cdb, uint32_t cdb_length, uint64_t data_length, const struct plain_disk *disk,
                         struct plain_request *request)
{
    static const uint8_t length_of_group[8] = {6, 10, 10, 0, 16, 12, 0, 0};
    uint8_t flags, group, control;
    uint64_t lba, count;
    enum plain_op op;

    if (!cdb_length || cdb_length < length_of_group[cdb[0] >> 5])
        return PLAIN_NOT;
    switch (cdb[0]) {
    case 0x08: case 0x28: case 0x88: case 0xa8:
        op = PLAIN_READ;
        break;
    case 0x0a: case 0x2a: case 0x8a: case 0xaa:
        op = PLAIN_WRITE;
        break;
    case 0x35: case 0x91:
        op = PLAIN_FLUSH;
        break;
    default:
        return PLAIN_NOT;
    }
    flags = cdb[1];
    switch (cdb[0] >> 5) {
    case 0:
        flags = 0;
        group = cdb[1] >> 5;
        lba = big(cdb + 1, 3);
        count = cdb[4] ? cdb[4] : 256;
        control = cdb[5];
        break;
    case 4:
        lba = big(cdb + 2, 8);
        count = big(cdb + 10, 4);
        group = cdb[14];
        control = cdb[15];
        break;
    case 5:
        lba = big(cdb + 2, 4);
        count = big(cdb + 6, 4);
        group = cdb[10];
        control = cdb[11];
        break;
    default:
        lba = big(cdb + 2, 4);
        group = cdb[6];
        count = big(cdb + 7, 2);
        control = cdb[9];
    }
    if (group || control || lba > disk->blocks || count > disk->blocks - lba)
        return PLAIN_NOT;
    request->op = op;
    request->fua = flags & FUA;
    request->offset = lba * disk->block_size;
    request->length = count * disk->block_size;
    if (op == PLAIN_FLUSH) {
        request->fua = false;
        request->offset = request->length = 0;
        return flags & ~IMMED || data_length ? PLAIN_NOT : op;
    }
    if (flags & ~(FUA | DPO) || !count || request->length != data_length || request->length > disk->maximum ||
        (op == PLAIN_WRITE && !disk->writable))
        return PLAIN_NOT;
    return op;
}
