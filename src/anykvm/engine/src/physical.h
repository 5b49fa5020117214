/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where Unicorn looks for a guest-physical address, for a file that defines TARGET_WRAP() and TARGET_REAL(): as it makes
 * a TLB entry, and where a page-table walk or the like reads or writes by physical address. Each asks regions.c.
 */
#include "engine.h"

void *TARGET_REAL(address_space_translate_for_iotlb)(void *cs, int space, uint64_t pa, uint64_t *offset, uint64_t *size,
                                                     uint32_t attrs, int *prot);
void *TARGET_WRAP(address_space_translate_for_iotlb)(void *cs, int space, uint64_t pa, uint64_t *offset, uint64_t *size,
                                                     uint32_t attrs, int *prot)
{
    return TARGET_REAL(address_space_translate_for_iotlb)(cs, space, cpu_unicorn_address(cpu_of(cs), pa), offset, size,
                                                          attrs, prot);
}

#define PHYSICAL_LOAD(name, type)                                                                                         \
    type TARGET_REAL(name)(void *uc, void *space, uint64_t pa, uint32_t attrs, uint32_t *result);                         \
    type TARGET_WRAP(name)(void *uc, void *space, uint64_t pa, uint32_t attrs, uint32_t *result)                          \
    {                                                                                                                     \
        return TARGET_REAL(name)(uc, space, cpu_unicorn_address(cpu_of_uc(uc), pa), attrs, result);                       \
    }

#define PHYSICAL_STORE(name, type)                                                                                        \
    void TARGET_REAL(name)(void *uc, void *space, uint64_t pa, type value, uint32_t attrs, uint32_t *result);             \
    void TARGET_WRAP(name)(void *uc, void *space, uint64_t pa, type value, uint32_t attrs, uint32_t *result)              \
    {                                                                                                                     \
        TARGET_REAL(name)(uc, space, cpu_unicorn_address(cpu_of_uc(uc), pa), value, attrs, result);                       \
    }
