# SPDX-License-Identifier: Apache-2.0
"""Pull images from registries and archives, make one SquashFS file of each, and keep it in a cache.

Loaded only if an image is a reference, or is packed or pushed; never for a step whose image is a file.

    pull                    the whole way from a reference to a file
    reference resolve fetch manifest layout importer
                            find the image that a reference means, and fetch it from a registry, an archive or a
                            site's program
    login credentials       the user's credentials for registries
    assemble layers stream merge additions flat pack
                            make a SquashFS file from the layers
    store names cache_directory locks records settings
                            the cache, and the site's settings for images
    push pack_file directory container_tree
                            push a file to a registry; pack a directory or a container into a file
    children progress       run programs; show progress
"""
