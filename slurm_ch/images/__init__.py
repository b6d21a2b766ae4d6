# SPDX-License-Identifier: Apache-2.0
"""Images from registries and archives: looked up, fetched, merged into one SquashFS file, and kept.

Loaded only where an image is a reference; a step whose image is a file never does.

    pull                    all of it, from a reference to a file
    reference resolve fetch manifest layout importer
                            which image is meant, and where it comes from: registries, archives, a site's program
    login credentials       who the user is there
    assemble layers stream merge additions flat pack
                            from its layers to a SquashFS file
    store names cache_directory locks records settings
                            the cache, and what the site says about it
    push pack_file directory container_tree
                            back: to a registry, or from a directory or a container to a file
    children progress       the programs that are started, and what is shown meanwhile
"""
